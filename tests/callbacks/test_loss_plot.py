"""The plot of the loss, drawn from metrics.csv only, complete or not."""

from matplotlib.image import imread

from llm.callbacks.loss_plot import draw_metrics


def ink(picture) -> int:
    """Return the number of pixels that are neither white nor grey: the lines of the losses."""
    pixels = imread(picture)[..., :3]
    return int((pixels.max(-1) - pixels.min(-1) > 0.3).sum())


def test_both_losses_are_drawn(tmp_path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,train/loss,val/loss\n10,5.0,\n20,4.0,4.5\n30,3.0,\n40,2.5,4.0\n")
    draw_metrics(metrics, tmp_path / "both.png", title="both")
    metrics.write_text("step,train/loss\n10,5.0\n20,4.0\n30,3.0\n40,2.5\n")
    draw_metrics(metrics, tmp_path / "one.png", title="one")
    assert ink(tmp_path / "both.png") > ink(tmp_path / "one.png") > 100


def test_a_run_stopped_before_anything_was_logged_has_an_empty_picture(tmp_path):
    (tmp_path / "metrics.csv").write_text("step\n")
    draw_metrics(tmp_path / "metrics.csv", tmp_path / "loss.png", title="nothing yet")
    assert ink(tmp_path / "loss.png") == 0


def test_each_panel_shows_its_metrics(tmp_path):
    metrics = tmp_path / "metrics.csv"
    columns = "step,train/loss,val/loss,train/margin,val/margin"
    metrics.write_text(f"{columns}\n10,5.0,,0.1,\n20,4.0,4.5,0.3,0.2\n30,3.0,,0.5,\n40,2,3,1,1\n")
    panels = {"loss": "loss (nats a pair)", "margin": "margin of rewards"}
    draw_metrics(metrics, tmp_path / "one.png", title="one")
    draw_metrics(metrics, tmp_path / "two.png", title="two", panels=panels)
    assert imread(tmp_path / "two.png").shape[0] > imread(tmp_path / "one.png").shape[0]
    assert ink(tmp_path / "two.png") > 1.5 * ink(tmp_path / "one.png")
