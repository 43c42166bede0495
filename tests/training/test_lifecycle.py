"""The life of a run: trained, stopped, resumed exactly, finished, extended, refused."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from small_runs import run_command

from llm.callbacks import throughput
from llm.comparison.result import Result
from llm.config.errors import ConfigError
from llm.config.fingerprint import IGNORE_BUT_BUDGET, fingerprint
from llm.runs import Run
from llm.tasks.non_finite import DivergedError
from llm.terminal import shell
from llm.training import lifecycle


def rows(run: Run) -> list[dict[str, str]]:
    """Return metrics.csv without values that depend on the clock and the machine."""
    with run.metrics.open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("speed/", "memory/"))}
            for row in csv.DictReader(file)
        ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(left: Path, right: Path) -> None:
    expected, found = weights(left), weights(right)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_a_run_directory_holds_everything(composed, tmp_path):
    run = run_command(composed(picture=True), tmp_path / "run")
    assert run.status == "done"
    for path in (run.config, run.tokenizer, run.best, run.last, run.metrics, run.picture):
        assert path.is_file(), path
    last = rows(run)[-1]
    assert last["step"] == "12"
    assert float(last["val/loss"]) < float(rows(run)[1]["val/loss"]), "it learned"
    for name in ("train/loss", "train/gradient_norm", "train/learning_rate", "val/bits_per_byte"):
        assert float(last[name]) > 0, name
    assert run.record["metrics"]["speed/tokens_per_second"] > 0
    request = fingerprint(composed(picture=True), IGNORE_BUT_BUDGET)
    assert run.record["request"] == request, "the request, before values of the data are filled in"


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step", range(1, 12))
def test_resume_from_any_step_equals_the_uninterrupted_run(
    composed, tmp_path, stop_at, step, accumulate
):
    """The same weights, optimizer and logged losses to the bit, with dropout and a schedule."""
    if accumulate == 2 and step not in (1, 4, 7):
        pytest.skip("three steps show it")
    config = composed(f"trainer.accumulate={accumulate}")
    whole = run_command(config.copy(), tmp_path / "whole")
    stop_at(step)
    with pytest.raises(SystemExit) as stopped:
        run_command(config.copy(), tmp_path / "parts")
    assert stopped.value.code == 130
    assert Run(tmp_path / "parts").status == "interrupted"
    stopped_at = torch.load(tmp_path / "parts/checkpoints/last.ckpt", weights_only=True)
    assert stopped_at["global_step"] == step
    stop_at(None)
    resumed = run_command(config.copy(), tmp_path / "parts")
    assert resumed.status == "done"
    assert_same_weights(whole.last, resumed.last)
    assert_same_weights(whole.best, resumed.best)
    assert rows(whole) == rows(resumed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_every_stopping_signal_saves(composed, tmp_path, stop_at, capsys, monkeypatch, number):
    monkeypatch.setattr("llm.signals.detach_terminal", lambda: None)
    stop_at(5, number)
    with pytest.raises(SystemExit):
        run_command(composed(), tmp_path / "run", ["seed=0"])
    message = capsys.readouterr().err
    assert f"stopped by {number.name} after step 5; it is saved." in message
    assert f"To resume: {shell.program()} train seed=0" in message


def test_immediately_stopped_run_resumes_from_its_checkpoint(
    composed, tmp_path, monkeypatch, capsys
):
    class Twice(Callback):
        def on_before_backward(self, trainer: L.Trainer, *_) -> None:
            if trainer.global_step == 6:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    original, before = lifecycle.choose_callbacks, signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "choose_callbacks", lambda *given: [*original(*given), Twice()])
        with pytest.raises(SystemExit) as stopped:
            run_command(composed(), tmp_path / "run", ["seed=0"])
    signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert stopped.value.code == 130
    record = Run(tmp_path / "run").record
    assert (record["status"], record["steps"], record["error"]) == ("interrupted", 4, None)
    assert (
        "stopped immediately after step 6; step 4 is saved.\n"
        f"To resume: {shell.program()} train seed=0" in capsys.readouterr().err
    )
    assert run_command(composed("trainer.max_steps=5"), tmp_path / "run").status == "done"


def test_done_run_is_unchanged_and_a_longer_one_resumes(composed, tmp_path, capsys):
    run = run_command(composed(), tmp_path / "run")
    before = run.last.stat().st_mtime_ns
    run_command(composed(), tmp_path / "run")
    assert run.last.stat().st_mtime_ns == before
    assert "is done already (12 steps)" in capsys.readouterr().out
    longer = run_command(composed("trainer.max_steps=16"), tmp_path / "run")
    assert longer.record["steps"] == 16
    assert [row["step"] for row in rows(longer)][-1] == "16"


def test_max_steps_below_the_steps_of_an_interrupted_run_is_refused(composed, tmp_path, stop_at):
    stop_at(7)
    with pytest.raises(SystemExit):
        run_command(composed(), tmp_path / "run")
    stop_at(None)
    with pytest.raises(ConfigError, match="has taken 7 steps already"):
        run_command(composed("trainer.max_steps=6"), tmp_path / "run")
    assert run_command(composed(), tmp_path / "run").status == "done"


def test_another_configuration_in_the_same_directory_is_refused_with_the_difference(
    composed, tmp_path
):
    run = run_command(composed(), tmp_path / "run")
    before = run.last.read_bytes()
    with pytest.raises(ConfigError, match="was trained with another configuration") as refused:
        run_command(composed("model.dropout=0.2"), tmp_path / "run")
    assert any("model.dropout" in line and "0.2" in line for line in refused.value.problems)
    assert run.last.read_bytes() == before, "nothing is lost"


def test_hardware_loggers_and_callbacks_may_change(composed, tmp_path):
    run_command(composed(), tmp_path / "run")
    words = ("hardware.workers=1", "~callbacks.picture", "trainer.max_steps=14")
    moved = composed(*words, picture=True)
    moved.callbacks.samples = {"_target_": "llm.callbacks.samples.Samples", "max_tokens": 2}
    assert run_command(moved, tmp_path / "run").record["steps"] == 14


def test_rerun_trains_from_the_start_and_keeps_the_old_run(composed, tmp_path):
    run_command(composed(), tmp_path / "run")
    again = run_command(composed("rerun=true", "trainer.max_steps=8"), tmp_path / "run")
    assert again.record["steps"] == 8
    assert Run(tmp_path / "run~1").record["steps"] == 12


def test_nan_stops_the_run_and_keeps_the_checkpoints(composed, tmp_path, monkeypatch):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 9:
                with torch.no_grad():
                    pl_module.model.embedding.weight[0, 0] = float("nan")

    original = lifecycle.choose_callbacks
    monkeypatch.setattr(lifecycle, "choose_callbacks", lambda *given: [*original(*given), Poison()])
    with pytest.raises(DivergedError, match=r"training diverged: .*optimizer\.lr"):
        run_command(composed(), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.status == "failed"
    for path in (run.best, run.last):
        assert all(value.isfinite().all() for value in weights(path).values())
    assert torch.load(run.last, weights_only=True)["global_step"] == 8


class Spoil(Callback):
    """Change the model after a backward pass."""

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.spoil(trainer, pl_module)


def enlarge(trainer: L.Trainer, task: L.LightningModule) -> None:
    """Make gradients that are finite, but whose squares are not."""
    if trainer.global_step >= 5:
        for parameter in task.parameters():
            parameter.grad.mul_(1e25)


def overflow(trainer: L.Trainer, task: L.LightningModule) -> None:
    """Set an infinite second moment, which changes no weight."""
    if trainer.global_step == 5:
        trainer.optimizers[0].state[task.model.embedding.weight]["exp_avg_sq"][0, 0] = float("inf")


@pytest.mark.parametrize("clip", ["null", "1.0"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (enlarge, r"the norm of the gradients is inf after step 5;"),
        (
            overflow,
            r"exp_avg_sq of parameter \d+ in the optimizer's state is not finite after step 8",
        ),
    ],
)
def test_non_finite_gradients_and_optimizer_state_are_not_saved(
    composed, tmp_path, monkeypatch, spoil, said, clip
):
    original = lifecycle.choose_callbacks
    monkeypatch.setattr(
        lifecycle, "choose_callbacks", lambda *given: [*original(*given), Spoil(spoil)]
    )
    with pytest.raises(DivergedError, match=said):
        run_command(composed(f"trainer.gradient_clip={clip}"), tmp_path / "run")
    saved = torch.load(Run(tmp_path / "run").last, weights_only=True)
    assert saved["global_step"] == 4
    for values in saved["optimizer_states"][0]["state"].values():
        assert all(value.isfinite().all() for value in values.values())


def test_diverged_model_is_neither_sampled_nor_saved(composed, tmp_path, monkeypatch):
    """Weights of 1e38 are finite, but the outputs of the model are not."""

    class Enlarge(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_) -> None:
            if trainer.global_step == 2:
                with torch.no_grad():
                    for parameter in task.parameters():
                        parameter.mul_(1e38 if parameter.ndim == 1 else 1e3)

    original = lifecycle.choose_callbacks
    monkeypatch.setattr(
        lifecycle, "choose_callbacks", lambda *given: [*original(*given), Enlarge()]
    )
    config = composed("trainer.val_every=2")
    config.callbacks.samples = {"_target_": "llm.callbacks.samples.Samples", "max_tokens": 2}
    with pytest.raises(DivergedError, match=r"the validation loss is (nan|inf) after step 2;"):
        run_command(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.status == "failed"
    assert not run.last.exists()
    assert not run.samples.exists()


@pytest.mark.parametrize(("steps", "every"), [(11, 4), (10, 7), (5, 3)])
def test_a_run_ends_with_a_validation_and_a_checkpoint_of_its_last_step(
    composed, tmp_path, steps, every
):
    config = composed(f"trainer.max_steps={steps}", f"trainer.val_every={every}")
    run = run_command(config, tmp_path / "run")
    assert torch.load(run.last, weights_only=True)["global_step"] == steps
    assert rows(run)[-1]["step"] == str(steps)
    assert float(rows(run)[-1]["val/loss"]) == run.record["metrics"]["val/loss"]


class Crash(Callback):
    """End like a killed process: nothing more is saved."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, *_) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == self.batch:
            raise RuntimeError("killed")


def test_a_crash_inside_an_accumulation_resumes_to_the_bit_with_muon_bf16_and_a_worker(
    composed, tmp_path, monkeypatch
):
    words = [
        *("optimizer=muon", "schedule=wsd", "schedule.warmup_steps=2", "hardware.precision=bf16"),
        *("hardware.workers=1", "trainer.accumulate=3", "callbacks.checkpoints.every=2"),
    ]
    whole = run_command(composed(*words), tmp_path / "whole")
    original = lifecycle.choose_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "choose_callbacks", lambda *given: [*original(*given), Crash(23)])
        with pytest.raises(RuntimeError, match="killed"):
            run_command(composed(*words), tmp_path / "parts")
    assert Run(tmp_path / "parts").status == "failed"
    assert (
        torch.load(tmp_path / "parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    )
    resumed = run_command(composed(*words), tmp_path / "parts")
    assert_same_weights(whole.last, resumed.last)
    assert rows(whole) == rows(resumed)


def test_changed_text_is_refused_and_the_run_keeps_its_tokenizer(composed, tmp_path, text):
    words = ("tokenizer=bpe", "tokenizer.vocab_size=280")
    run = run_command(composed(*words), tmp_path / "run")
    before = run.tokenizer.read_bytes()
    text.write_text(text.read_text() * 2 + "Something else altogether, and more of it.\n" * 50)
    with pytest.raises(ConfigError, match="was trained on another text"):
        run_command(composed(*words, "trainer.max_steps=20"), tmp_path / "run")
    assert run.tokenizer.read_bytes() == before


def test_refused_rerun_moves_nothing(composed, tmp_path):
    run_command(composed(), tmp_path / "run")
    with pytest.raises(ConfigError):
        run_command(composed("rerun=true", "data.path=/nonexistent"), tmp_path / "run")
    assert Run(tmp_path / "run").status == "done"
    assert not (tmp_path / "run~1").exists()


def test_interrupted_rerun_resumes_with_the_printed_command(composed, tmp_path, stop_at, capsys):
    run_command(composed(), tmp_path / "run")
    stop_at(5)
    with pytest.raises(SystemExit):
        run_command(composed("rerun=true"), tmp_path / "run", ["seed=0", "rerun=true"])
    assert f"To resume: {shell.program()} train seed=0\n" in capsys.readouterr().err
    stop_at(None)
    run_command(composed(), tmp_path / "run", ["seed=0"])
    assert Run(tmp_path / "run").status == "done"
    assert {path.name for path in tmp_path.glob("run*")} == {"run", "run~1"}


def test_a_prompt_that_cannot_be_encoded_is_refused_before_training(composed, tmp_path):
    config = composed("tokenizer=char")
    config.callbacks.samples = {
        "_target_": "llm.callbacks.samples.Samples",
        "prompts": ["the Ω"],
    }
    with pytest.raises(ConfigError, match=r"callbacks\.samples\.prompts: .*Ω"):
        run_command(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_missing_hardware_is_reported_in_one_line(composed, tmp_path):
    with pytest.raises(ConfigError, match=r"^hardware\.precision=fp16 needs a GPU"):
        run_command(composed("hardware.precision=fp16"), tmp_path / "run")


def test_speed_leaves_out_the_time_of_validation(composed, tmp_path, monkeypatch):
    """With a clock that advances one second per reading, and a thousand in a validation."""
    original = lifecycle.choose_callbacks
    now = 0

    def read() -> int:
        nonlocal now
        now += 1
        return now

    class Slow(Callback):
        def on_validation_end(self, *_) -> None:
            nonlocal now
            now += 1000

    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=read))
    monkeypatch.setattr(lifecycle, "choose_callbacks", lambda *given: [*original(*given), Slow()])
    run = run_command(composed("trainer.log_every=1"), tmp_path / "run")
    with run.metrics.open(newline="") as file:
        speeds = [float(row["speed/tokens_per_second"]) for row in csv.DictReader(file)]
    assert len(speeds) == 12
    assert set(speeds) == {64.0}, "64 tokens a step, and one second a step"


def test_sampling_does_not_change_training(composed, tmp_path, capsys):
    plain = run_command(composed(), tmp_path / "plain")
    config = composed()
    config.callbacks.samples = {
        "_target_": "llm.callbacks.samples.Samples",
        "prompts": ["the cat", ""],
        "max_tokens": 5,
    }
    sampled = run_command(config, tmp_path / "sampled")
    assert_same_weights(plain.last, sampled.last)
    text = sampled.samples.read_text("utf-8")
    assert text.count("=== step 4\nthe cat") == text.count("=== step 12\nthe cat") == 1
    assert text.count("=== step") == 6
    assert "the cat" in capsys.readouterr().out


def test_output_without_a_terminal_is_lines_with_metrics(composed, tmp_path, capsys):
    run_command(composed(), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    (last,) = [line for line in lines if line.startswith("step 12/12: ")]
    for word in ("loss", "val", "ppl", "bits/byte", "tok/s"):
        assert word in last


def test_progress_line_shows_the_metrics_of_its_step(composed, tmp_path, capsys):
    words = ("+callbacks.progress.seconds=0", "trainer.val_every=5", "trainer.log_every=4")
    run_command(composed(*words), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    printed = {
        line.split(":")[0]: [word in line for word in (" loss", "val ")]
        for line in lines
        if line.startswith("step ")
    }
    trained, validated = [True, False], [False, True]
    expected = {4: trained, 5: validated, 8: trained, 10: validated, 12: [True, True]}
    assert printed == {f"step {step}/12": words for step, words in expected.items()}


def test_strategy_with_one_device_is_reported(composed, tmp_path, capsys):
    words = ("hardware=fsdp", "hardware.accelerator=cpu", "trainer.max_steps=1")
    run_command(composed(*words), tmp_path / "run")
    assert (
        "note      FSDP: is not used, because there is only one device" in capsys.readouterr().out
    )
    run_command(composed("trainer.max_steps=1"), tmp_path / "plain")
    assert "there is only one device" not in capsys.readouterr().out


def test_accumulation_changes_nothing_but_the_memory(composed, tmp_path):
    quiet = ("model.dropout=0", "optimizer=sgd", "trainer.val_every=6")
    whole = run_command(composed(*quiet, "data.batch_size=8"), tmp_path / "whole")
    parts = run_command(
        composed(*quiet, "data.batch_size=4", "trainer.accumulate=2"), tmp_path / "parts"
    )
    for name, value in weights(whole.last).items():
        torch.testing.assert_close(weights(parts.last)[name], value, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_changes_nothing_but_the_memory(composed, tmp_path):
    plain = run_command(composed(), tmp_path / "plain")
    lean = run_command(composed("hardware.activation_checkpointing=true"), tmp_path / "lean")
    assert_same_weights(plain.last, lean.last)


def test_bfloat16_trains_with_weights_in_float32(composed, tmp_path):
    run = run_command(composed("hardware.precision=bf16"), tmp_path / "run")
    assert {value.dtype for value in weights(run.last).values()} == {torch.float32}
    assert run.record["metrics"]["val/loss"] < float(rows(run)[1]["val/loss"])


@pytest.mark.long
def test_compiled_training_gives_the_same_losses(text, tmp_path):
    """In other processes, because the compiler cannot trace the run-time check of shapes."""
    found = {}
    for compiled in ("false", "true"):
        words = [
            *("size=nano", "size.num_layers=1", "size.dim=32", "tokenizer=byte"),
            *("data=text", f"data.path={text}", "hardware=cpu", "hardware.precision=32"),
            f"hardware.compile={compiled}",
            *("trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1"),
            *("callbacks.samples=null", f"name=compiled-{compiled}", f"output_dir={tmp_path}"),
        ]
        environment = os.environ | {"LLM_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "llm", "train", *words]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        run = Run(tmp_path / "pretraining" / f"compiled-{compiled}")
        found[compiled] = [float(row["train/loss"]) for row in rows(run)]
    assert len(found["true"]) == 6
    assert found["true"] == pytest.approx(found["false"], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop", "adagrad", "muon"])
def test_every_optimizer_trains(composed, tmp_path, optimizer):
    run = run_command(composed(f"optimizer={optimizer}"), tmp_path / "run")
    assert run.record["metrics"]["val/loss"] < float(rows(run)[1]["val/loss"])


def test_early_stopping_waits_for_its_patience(composed, tmp_path):
    stuck = ("optimizer.lr=0", "callbacks.early_stopping.patience=1", "model.dropout=0")
    run = run_command(composed(*stuck, "trainer.max_steps=40"), tmp_path / "run")
    assert run.status == "done"
    assert run.record["stopped_at"] == 8, (
        "the first validation is the best, the second is no better"
    )


def test_validation_is_bounded_while_training_and_whole_at_the_end(composed, tmp_path, capsys):
    """Training equals that of a run that always reads the whole part, and so do the metrics of the best weights."""
    bounded = run_command(composed("trainer.val_bytes=200"), tmp_path / "bounded")
    assert "note      validated on a fixed 13 of " in capsys.readouterr().out
    whole = run_command(composed(), tmp_path / "whole")
    assert "note" not in capsys.readouterr().out, "a small part is read whole"
    first, second = Result(bounded), Result(whole)
    losses = [
        [row["val/loss"] for row in each.rows if "val/loss" in row] for each in (first, second)
    ]
    assert len(losses[0]) == len(losses[1]) == 3
    assert losses[0] != losses[1]
    assert all(abs(a - b) < 0.3 for a, b in zip(*losses, strict=True))
    assert first.metrics["best_loss"] == second.metrics["best_loss"] == min(losses[1])
    assert first.metrics["bits_per_byte"] == second.metrics["bits_per_byte"]
    assert bounded.record["corpus"] == whole.record["corpus"]
    assert_same_weights(bounded.last, whole.last)


def test_run_starts_from_weights_of_another_run(composed, tmp_path):
    base = run_command(composed(), tmp_path / "base")
    further = composed("weights=run", f"weights.path={base.path}", "trainer.max_steps=1")
    further.optimizer.lr = 0.0
    run = run_command(further, tmp_path / "further")
    assert_same_weights(base.best, run.last)


def test_an_override_that_conflicts_with_the_base_run_is_refused(composed, tmp_path):
    base = run_command(composed(), tmp_path / "base")
    overrides = ["weights=run", f"weights.path={base.path}", "model=gpt2"]
    with pytest.raises(ConfigError, match="model=gpt2: the model, its size and its tokenizer are"):
        run_command(composed(*overrides), tmp_path / "further", overrides)


def test_dropout_may_differ_from_the_base_run(composed, tmp_path):
    base = run_command(composed("model.dropout=0.0"), tmp_path / "base")
    overrides = ["weights=run", f"weights.path={base.path}", "model.dropout=0.25"]
    run = run_command(composed(*overrides), tmp_path / "further", overrides)
    assert OmegaConf.load(run.config).model.dropout == 0.25


def test_directory_that_is_not_a_run_is_named(composed, tmp_path):
    config = composed("weights=run", f"weights.path={tmp_path / 'nothing'}")
    with pytest.raises(ConfigError, match="nothing is not a run directory"):
        run_command(config, tmp_path / "run")


def test_a_vocabulary_smaller_than_the_tokenizers_is_named(composed, tmp_path):
    with pytest.raises(
        ConfigError, match=r"model\.vocab_size: 100 is smaller than the tokenizer's 257"
    ):
        run_command(composed("model.vocab_size=100"), tmp_path / "run")


def test_run_without_checkpoints_reports_that_nothing_is_saved(composed, tmp_path, capsys):
    words = ("~callbacks.checkpoints", "~callbacks.random_states", "trainer.max_steps=2")
    run_command(composed(*words), tmp_path / "run")
    out = capsys.readouterr().out
    assert "note      callbacks.checkpoints is left out: no weights are saved\n" in out
    assert "  then      (no weights were saved: callbacks.checkpoints is left out)\n" in out
    assert "generate" not in out


def test_batch_larger_than_memory_is_refused_before_a_folder_is_made(composed, tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.batch_size: 1,000,000,000 rows take 9\d\d GiB"):
        run_command(composed("data.batch_size=1000000000"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
