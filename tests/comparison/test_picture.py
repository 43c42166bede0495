import pytest
from made_runs import make
from matplotlib.figure import Figure

from llm.comparison.picture import COLORS
from llm.comparison.table import compare


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a comparison, and return its axes."""
    figures = []

    def remember(self, path, **_):
        figures.append(self)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", remember)

    def draw(runs):
        written = compare(runs).write(tmp_path / "out")
        return figures[-1].axes if written[-1].name == "loss.png" else []

    return draw


def named(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_legend_omits_the_settings_in_the_title(drawn, tmp_path):
    runs = [
        make(
            tmp_path / file / model,
            settings={"model": model, "data.path": f"/a/long/way/to/the/folder/of/{file}"},
            corpus=file,
        )
        for file in ("a.txt", "b.txt")
        for model in ("gpt", "llama")
    ]
    axes = drawn(runs)
    assert [set(named(panel)) for panel in axes] == [{"model=gpt", "model=llama"}] * len(axes)
    assert axes[0].get_title(loc="left").endswith("/a.txt")


def test_loss_is_drawn_against_tokens_and_against_compute(drawn, tmp_path):
    tokens, compute = drawn(
        [
            make(tmp_path / "a", [5.0, 4.0]),
            make(tmp_path / "b", [5.0, 3.0], settings={"model": "llama"}),
        ]
    )
    assert (tokens.get_xlabel(), compute.get_xlabel()) == ("training tokens", "training FLOPs")
    assert "validation loss" in tokens.get_ylabel()
    assert named(tokens)["llama"].get_xydata().tolist() == [[1000, 5.0], [2000, 3.0]]
    assert named(compute)["llama"].get_xdata().tolist() == [6e9, 12e9]


def test_seeds_are_thin_lines_and_their_mean_a_thick_one(drawn, tmp_path):
    axes = drawn([make(tmp_path / str(n), [5.0, 4.0 + n], seed=n) for n in range(3)])[0]
    (mean,) = (line for line in axes.lines if line.get_linewidth() > 1)
    assert mean.get_ydata().tolist() == [5.0, 5.0]
    assert len(axes.lines) == 4
    assert len(axes.collections) == 1, "the band of the interval"


def test_color_shows_the_architecture_and_line_style_the_size(drawn, tmp_path):
    runs = [
        make(tmp_path / f"{size}{model}", settings={"size": size, "model": model})
        for size in ("nano", "micro")
        for model in ("gpt", "llama")
    ]
    lines = named(drawn(runs)[0])
    looks = {
        name: (line.get_color(), line.get_marker(), line.get_linestyle())
        for name, line in lines.items()
    }
    assert looks["size=nano model=gpt"][:2] == looks["size=micro model=gpt"][:2]
    assert looks["size=nano model=gpt"][2] != looks["size=micro model=gpt"][2]
    assert looks["size=nano model=gpt"][0] != looks["size=nano model=llama"][0]
    assert {color for color, *_ in looks.values()} <= set(COLORS)


def test_twenty_architectures_have_distinct_styles(drawn, tmp_path):
    runs = [make(tmp_path / str(n), settings={"model": f"m{n}"}) for n in range(20)]
    lines = named(drawn(runs)[0]).values()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20


def test_losses_of_different_tokenizers_are_drawn_in_bits_per_byte(drawn, tmp_path):
    runs = [make(tmp_path / v, settings={"tokenizer": v}, vocabulary=v) for v in ("byte", "bpe")]
    assert "bits per byte" in drawn(runs)[0].get_ylabel()


def test_different_data_have_separate_panels(drawn, tmp_path):
    axes = drawn([make(tmp_path / v, settings={"data": v}, corpus=v) for v in ("a1", "b2")])
    assert [len(named(each)) for each in axes] == [1, 1, 1, 1]


def test_compute_that_is_unknown_is_not_drawn(drawn, tmp_path):
    assert len(drawn([make(tmp_path / "a", flops_per_token=None)])) == 1


def test_runs_without_measurements_have_no_picture(drawn, tmp_path):
    assert drawn([make(tmp_path / "a", rows=[])]) == []


def test_an_unfinished_curve_is_labelled(drawn, tmp_path):
    runs = [
        make(tmp_path / model, settings={"model": model}, status=status)
        for model, status in (("gpt", "done"), ("llama", "failed"))
    ]
    axes = drawn(runs)[0]
    told = {text.get_text() for each in drawn(runs)[-1:] for text in each.get_legend().get_texts()}
    assert told == {"gpt", "llama (failed)"} == named(axes).keys()
    alone = drawn(runs[1:])[-1]
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["llama (failed)"]
