"""Resume: from the last complete checkpoint of this run; otherwise nothing is replaced."""

import json
import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from small_runs import run_command

from llm import hardware, precision
from llm.callbacks.checkpoints import Checkpoints
from llm.checkpoints import checkpoint_file
from llm.checkpoints.checkpoint_file import open_checkpoint
from llm.config.errors import ConfigError, UserError
from llm.config.os_errors import explain_os_errors
from llm.files import sha256_of_file
from llm.hardware import Hardware
from llm.runs import Run
from llm.tasks.non_finite import DivergedError
from llm.terminal import shell
from llm.training import lifecycle, setup
from llm.training.resumption import keep_precision
from llm.weights.run import RunWeights

SHORT = ("trainer.max_steps=4", "trainer.val_every=2")
LONGER = ("trainer.max_steps=6", "trainer.val_every=2")


@pytest.fixture
def done(composed, tmp_path) -> Run:
    """A finished run of four steps, with the checkpoints of the last two validations."""
    return run_command(composed(*SHORT), tmp_path / "run")


def content(run: Run) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def refused(composed, run: Run, *words: str) -> str:
    """Return the error message, which must be one line and leave the directory unchanged."""
    before = content(run)
    with pytest.raises(UserError) as refusal:
        run_command(composed(*words), run.path)
    assert content(run) == before
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def lose_last(run: Run) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (run.path / "checkpoints" / name).unlink(missing_ok=True)


@pytest.mark.parametrize("change", [(), ("optimizer.lr=0.5",)])
def test_run_without_its_last_checkpoint_is_not_retrained(composed, done, change):
    lose_last(done)
    said = refused(composed, done, *LONGER, *change)
    assert "last.ckpt: is missing" in said
    assert "rerun=true" in said
    assert f"weights=run weights.path={done.path} name=NEW" in said


def test_remedies_in_the_error_work(composed, tmp_path, done, capsys):
    lose_last(done)
    assert run_command(composed(*SHORT), done.path).status == "done"
    assert "is done already" in capsys.readouterr().out
    words = ("weights=run", f"weights.path={done.path}", *LONGER)
    assert run_command(composed(*words), tmp_path / "other").status == "done"
    assert run_command(composed(*LONGER, "rerun=true"), done.path).record["steps"] == 6
    assert Run(tmp_path / "run~1").best.is_file()


def test_interrupted_run_without_its_last_checkpoint_is_not_retrained(composed, tmp_path, stop_at):
    stop_at(3)
    with pytest.raises(SystemExit):
        run_command(composed(*SHORT), tmp_path / "run")
    stop_at(None)
    run = Run(tmp_path / "run")
    lose_last(run)
    assert "last.ckpt: is missing" in refused(composed, run, *SHORT)


@pytest.mark.parametrize("lost", ["sha256.json", "run.json", "config.yaml"])
def test_a_killed_run_that_lost_its_records_too_keeps_its_best_weights(composed, done, lost):
    record = {k: v for k, v in done.record.items() if k not in ("steps", "trained", "metrics")}
    done.record = {}
    done.update(**(record | {"status": "running"}))
    lose_last(done)
    if lost != "sha256.json":
        digests = done.path / "checkpoints" / "sha256.json"
        kept = {"best.ckpt": json.loads(digests.read_text())["best.ckpt"]}
        digests.write_text(json.dumps(kept))
    next(done.path.rglob(lost)).unlink()
    said = refused(composed, done, *SHORT)
    assert "last.ckpt: is missing" in said
    assert "rerun=true" in said
    assert ("weights=run" in said) == (lost == "run.json"), "only what works is advised"


def test_best_checkpoint_is_written_after_a_kill_before_it(composed, tmp_path, monkeypatch):
    def killed(*_) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_save_best", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run_command(composed(*SHORT), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.last.is_file()
    assert not run.best.exists()
    saved = Checkpoints._save_best
    steps = []

    def save(self, trainer, task) -> None:
        steps.append(trainer.global_step)
        saved(self, trainer, task)

    monkeypatch.setattr(Checkpoints, "_save_best", save)
    run_command(composed(*SHORT), run.path)
    assert steps == [2, 4]
    assert open_checkpoint(run.best)["global_step"] == 4


def test_best_checkpoint_and_plot_are_written_after_a_kill_at_the_last_step(
    composed, tmp_path, monkeypatch
):
    def killed(checkpoints, trainer, *_) -> None:
        if trainer.global_step == 4:
            raise SystemExit(1)
        saved(checkpoints, trainer, *_)

    saved = Checkpoints._save_best
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_save_best", killed)
        with pytest.raises(SystemExit):
            run_command(composed(*SHORT, picture=True), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert open_checkpoint(run.best)["global_step"] == 2
    run.picture.unlink(missing_ok=True)
    assert run_command(composed(*SHORT, picture=True), run.path).status == "done"
    assert open_checkpoint(run.best)["global_step"] == 4
    assert run.picture.is_file()


def test_damaged_best_checkpoint_is_named_and_rewritten_once_deleted(composed, done):
    with done.best.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ConfigError, match=r"best.ckpt is damaged; delete it, and the next valid"):
        run_command(composed(*LONGER), done.path)
    done.best.unlink()
    run_command(composed(*LONGER), done.path)
    assert open_checkpoint(done.best)["global_step"] > 4


def test_resumed_run_keeps_its_precision(composed, tmp_path, monkeypatch):
    """`auto` measures the processor, and the result can change between measurements."""
    # The measurement takes long without AVX512-BF16.
    monkeypatch.setattr(precision, "matmul_rate", lambda dtype: 1e9)
    for fastest, steps in (("bf16", 4), (32, 6)):
        monkeypatch.setattr(hardware, "faster_precision", lambda _, fastest=fastest: fastest)
        words = ("trainer.val_every=2", "hardware.precision=auto", f"trainer.max_steps={steps}")
        run = run_command(composed(*words), tmp_path / "run")
    assert OmegaConf.load(run.config).hardware.precision == "bf16"
    assert run_command(composed(*words), tmp_path / "other").status == "done"
    assert OmegaConf.load(tmp_path / "other" / "config.yaml").hardware.precision == 32


def test_points_of_a_sweep_agree_on_a_precision(composed, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_SWEEP_FOLDER", str(tmp_path / "sweep"))
    config = composed("hardware.precision=auto")
    for measured in ("bf16", 32):
        point = Hardware(accelerator="cpu", precision=measured)
        run = Run(tmp_path / str(measured))
        assert keep_precision(point, run, config).precision == "bf16"
    chosen = composed("hardware.precision=32")
    assert keep_precision(point, run, chosen).precision == 32
    device = Hardware(accelerator="cuda", precision="fp16")  # which is not measured
    assert keep_precision(device, run, config).precision == "fp16"
    (tmp_path / "sweep" / "settled.json").write_text('{"precision on cpu": "int1"}')
    with pytest.raises(ConfigError, match=r"settled.json: precision on cpu is 'int1', not bf16"):
        keep_precision(point, run, config)


def test_deleted_last_checkpoint_is_replaced_by_the_previous_one(composed, done, capsys):
    done.last.unlink()
    run_command(composed(*LONGER), done.path)
    out = capsys.readouterr().out
    assert "last.ckpt: there is no such checkpoint: resuming from the previous checkpoint" in out
    assert open_checkpoint(done.last)["global_step"] == 6


def test_damaged_last_checkpoint_is_replaced_by_the_previous_one(composed, tmp_path, done, capsys):
    whole = run_command(composed(*LONGER), tmp_path / "whole")
    flip(done.last)
    run_command(composed(*LONGER), done.path)
    out = capsys.readouterr().out
    assert "last.ckpt is damaged" in out
    assert "resuming from the previous checkpoint, of step 2" in out
    expected, found = (torch.load(run.last, weights_only=True) for run in (whole, done))
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor), name
    assert done.metrics.read_text().count("\n") == whole.metrics.read_text().count("\n")


@pytest.mark.parametrize("damage", ["both", "no record", "empty record"])
def test_done_run_with_damaged_checkpoints_stays_done(composed, done, damage):
    digests = done.path / "checkpoints" / "sha256.json"
    if damage == "both":
        flip(done.last)
        flip(done.path / "checkpoints" / "previous.ckpt")
    elif damage == "no record":
        digests.unlink()
    else:
        digests.write_text("{}")
    said = refused(composed, done, *LONGER)
    assert "last.ckpt is damaged" in said
    assert "rerun=true trains it again" in said
    assert ("weights=run" in said) == (damage == "both"), "best.ckpt needs its record"
    assert Run(done.path).status == "done"


HALF, TABLE, BINARY, FOLDER = b'{"status": "do', b"a,b\nc,d\n", bytes(range(256)), None
BROKEN = {
    "metrics.csv": (BINARY, TABLE, FOLDER),
    "run.json": (HALF, FOLDER),
    "config.yaml": (FOLDER,),
    "tokenizer.json": (FOLDER,),
    "checkpoints/sha256.json": (b"", FOLDER),
}


def test_broken_file_of_a_resumed_run_is_named(composed, done):
    config = composed(*LONGER)
    for place, contents in BROKEN.items():
        kept = (file := done.path / place).read_bytes()
        for content in contents:
            file.unlink()
            file.mkdir() if content is None else file.write_bytes(content)
            with pytest.raises(ConfigError) as end, explain_os_errors():
                run_command(deepcopy(config), done.path)
            message = str(end.value)
            assert ("last.ckpt is damaged" if "sha256" in place else f"{place}: ") in message
            assert "\n" not in message
            file.rmdir() if file.is_dir() else file.unlink()
            file.write_bytes(kept)


def test_checkpoints_of_another_run_are_refused(composed, tmp_path, done):
    other = run_command(composed(*SHORT, "seed=1"), tmp_path / "other")
    shutil.rmtree(done.path / "checkpoints")
    shutil.copytree(other.path / "checkpoints", done.path / "checkpoints")
    said = refused(composed, done, *LONGER)
    assert "last.ckpt: is the checkpoint of another run (its fingerprint is" in said
    begun = Run(tmp_path / "begun")
    shutil.copytree(other.path / "checkpoints", begun.path / "checkpoints")
    assert "has checkpoints, but not the run.json" in refused(composed, begun, *LONGER)
    again = run_command(composed(*SHORT, "rerun=true"), begun.path)
    assert open_checkpoint(again.last)["run"]["fingerprint"] == again.record["fingerprint"]


def test_best_weights_of_another_run_are_refused(composed, tmp_path, done):
    other = run_command(composed(*SHORT, "seed=1"), tmp_path / "other")
    for run, file in ((done, other.best), (other, done.best)):
        shutil.copy(file, run.path / "taken.ckpt")
    for run in (done, other):
        (run.path / "taken.ckpt").replace(run.best)
        digests = run.path / "checkpoints" / "sha256.json"
        record = json.loads(digests.read_text()) | {"best.ckpt": [sha256_of_file(run.best)]}
        digests.write_text(json.dumps(record))
    message = "best.ckpt: is the checkpoint of another run (its fingerprint is"
    assert message in refused(composed, done, *LONGER)
    with pytest.raises(ConfigError, match=re.escape(message)):
        RunWeights(str(done.path)).model()
    assert RunWeights(str(done.path), checkpoint="last").model()


def test_resume_reads_and_verifies_the_checkpoint_once(composed, done, monkeypatch):
    verified, read = checkpoint_file.verified, []
    monkeypatch.setattr(
        checkpoint_file, "verified", lambda path: read.append(path) or verified(path)
    )
    run_command(composed(*LONGER), done.path)
    assert read.count(done.last) == 1


def test_attempt_without_a_step_leaves_a_done_run_done(composed, done, monkeypatch):
    def fail(*_, **__) -> None:
        raise RuntimeError("no logger today")

    before = (done.path / "run.json").read_bytes()
    monkeypatch.setattr(lifecycle, "make_loggers", fail)
    with pytest.raises(RuntimeError, match="no logger today"):
        run_command(composed(*LONGER), done.path)
    assert (done.path / "run.json").read_bytes() == before


def test_damaged_best_checkpoint_is_reported_with_a_remedy(done):
    flip(done.best)
    with pytest.raises(
        ConfigError, match=r"best\.ckpt is damaged.*; weights\.checkpoint=last reads"
    ):
        RunWeights(str(done.path)).model()
    assert RunWeights(str(done.path), checkpoint="last").model()


CHANGES = {
    "optimizer.lr=1e-4": "optimizer.lr: 0.001 → 0.0001",
    "schedule=constant": 'schedule._target_: "llm.optim.schedules.cosine" → "llm.optim.schedules.constant"',
    "trainer.gradient_clip=0.5": "trainer.gradient_clip: 1.0 → 0.5",
    "data.batch_size=6": "data.batch_size: 4 → 6",
    "trainer.accumulate=3": "trainer.accumulate: 1 → 3",
}


def test_run_resumes_with_allowed_changes(composed, tmp_path, done, capsys):
    words = (*LONGER, *CHANGES)
    with pytest.raises(UserError) as refusal:
        run_command(composed(*words), done.path)
    header, *lines = str(refusal.value).splitlines()
    assert "resume from its last checkpoint with resume=allow_changes" in header
    assert "weights=run" in header
    assert set(CHANGES.values()) <= set(lines)
    batches = read_batches(tmp_path, composed, done, *words)
    run = Run(done.path)
    assert (run.status, run.record["steps"]) == ("done", 6)
    assert [each["from_step"] for each in run.record["segments"]] == [0, 4]
    assert run.record["segments"][1]["changes"]["optimizer.lr"] == "0.001 → 0.0001"
    assert "optimizer.lr 0.001 → 0.0001, from step 4 on" in capsys.readouterr().out
    state = torch.load(run.last, weights_only=True)
    assert {group["lr"] for group in state["optimizer_states"][0]["param_groups"]} == {1e-4}
    assert state["global_step"] == 6
    assert state["data"]["position"] == 3 + 6, "16 rows read before are 3 batches of 6"
    assert batches == 6
    run_command(composed(*words), done.path)
    assert "is done already (6 steps)" in capsys.readouterr().out


def read_batches(tmp_path, composed, run: Run, *words: str) -> int:
    """Resume with changes, and count the micro-batches."""
    from llm.tasks.pretraining import Pretraining

    count, step = 0, Pretraining.step

    def counted(self, batch):
        nonlocal count
        count += self.training
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "step", counted)
        run_command(composed(*words, "resume=allow_changes"), run.path)
    return count


def test_other_changes_are_refused(composed, done, tmp_path):
    words = (*LONGER, "resume=allow_changes", "model.dropout=0.2", "optimizer.lr=1e-4")
    with pytest.raises(UserError, match=r"model\.dropout: 0.1 → 0.2") as refusal:
        run_command(composed(*words), done.path)
    assert "resume=" not in str(refusal.value).splitlines()[0]
    with pytest.raises(UserError, match="resume=allow_changes: there is no run to resume in"):
        run_command(composed("resume=allow_changes"), tmp_path / "elsewhere")


def test_comparison_reports_changes_and_counts_no_repetition(composed, tmp_path, done):
    from llm.comparison.table import compare

    words = ("trainer.max_steps=6", "optimizer.lr=1e-4")
    run_command(composed(*words, "resume=allow_changes"), done.path)
    plain = run_command(composed(*words, "seed=1"), tmp_path / "plain")
    table = compare([Run(done.path), Run(plain.path)])
    assert (
        "run was changed during training: optimizer.lr 0.001 → 0.0001 from step 4 on" in table.notes
    )
    assert sum(len(part.rows) for part in table.parts) == 2


def test_changed_run_that_stops_before_its_first_step_resumes(
    composed, tmp_path, done, monkeypatch
):
    words = (*LONGER, "optimizer.lr=1e-4", "resume=allow_changes")
    Run(done.path).update(status="interrupted")

    def fail(*_, **__) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "make_trainer", fail)
        with pytest.raises(RuntimeError, match="killed"):
            run_command(composed(*words), done.path)
    run = run_command(composed(*words[:-1]), done.path)
    assert [each["from_step"] for each in run.record["segments"]] == [0, 4]


def test_diverged_run_is_rescued_by_the_printed_command(composed, tmp_path):
    wild = ("optimizer=sgd", "optimizer.lr=1e20", "trainer.gradient_clip=null", "model.dropout=0")
    wild += ("schedule=linear", "schedule.warmup_steps=0", "trainer.val_every=2")
    calm = ("optimizer.lr=0.01", *wild[:1], *wild[2:])
    run = run_command(composed(*calm, "trainer.max_steps=2"), tmp_path / "run")
    words = (*wild, "resume=allow_changes", "trainer.max_steps=8")
    with pytest.raises(DivergedError) as diverged:
        run_command(composed(*words), run.path, ["seed=0", "resume=allow_changes"])
    first, second = str(diverged.value).splitlines()
    assert "use a lower optimizer.lr" in first
    again = ("seed=0", 'name="run"', "optimizer.lr=1e+19", "resume=allow_changes")
    command = shell.command_line(shell.program(), "train", *again)
    assert second == f"To resume from step 2: {command}"
    with pytest.raises(DivergedError) as diverged:
        run_command(composed(*wild), tmp_path / "new", ["optimizer.lr=1e20"])
    command = shell.command_line(shell.program(), "train", 'name="new"', "optimizer.lr=1e+19")
    assert str(diverged.value).endswith(f"No checkpoint was saved. To train again: {command}")

    words = (*calm, "resume=allow_changes", "trainer.max_steps=8")
    rescued = run_command(composed(*words), run.path)
    assert rescued.status == "done"
    assert [each["from_step"] for each in rescued.record["segments"]] == [0, 2, 2]


@pytest.mark.parametrize("after_checkpoint", [True, False])
def test_a_kill_at_a_checkpoint_loses_no_sample_and_no_metric(
    composed, tmp_path, monkeypatch, logged, after_checkpoint
):
    config = composed("trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1")
    config.callbacks.samples = {"_target_": "llm.callbacks.samples.Samples", "max_tokens": 3}
    whole = run_command(config.copy(), tmp_path / "whole")
    save = Checkpoints.save_last

    def killed(self, trainer, task) -> None:
        if after_checkpoint or trainer.global_step < 4:
            save(self, trainer, task)
        if trainer.global_step == 4:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_last", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run_command(config.copy(), tmp_path / "parts")
    parts = run_command(config.copy(), tmp_path / "parts")
    assert parts.samples.read_text() == whole.samples.read_text()
    assert logged(parts) == logged(whole)


def test_checkpoint_is_written_after_other_files_and_before_the_stop(composed):
    from llm.callbacks.interrupt import Interrupt
    from llm.callbacks.loss_plot import Picture

    callbacks = [Interrupt(), Checkpoints(), Picture()]
    kinds = [type(each) for each in sorted(callbacks, key=setup.callback_order)]
    assert kinds == [Picture, Checkpoints, Interrupt]


def test_resume_deletes_incomplete_files_of_a_killed_process(composed, done):
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = done.path / "checkpoints"
    left = [folder / f".last.ckpt.{ended.pid}", done.path / f".metrics.csv.{ended.pid}"]
    for file in left:
        file.touch()
    left += [folder / ".last.ckpt.parts", folder / ".best.ckpt.before"]
    for each in left[2:]:
        each.mkdir()
        (each / "index.json").touch()
    run_command(composed(*LONGER), done.path)
    assert not any(each.exists() for each in left)
