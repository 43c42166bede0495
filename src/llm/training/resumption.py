"""What a run goes on from: its last checkpoint, or the one before it if that is damaged or gone."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from llm import distributed, sweeps
from llm.checkpoints.checkpoint_file import fall_back, header_of, open_whole, read_whole
from llm.checkpoints.checksums import DamagedCheckpointError, recorded_digests
from llm.config.errors import ConfigError, UserError
from llm.config.fingerprint import fingerprint, fingerprint_changes, recipe
from llm.files import read_yaml
from llm.hardware import Hardware
from llm.runs import Run, display_path
from llm.terminal import shell

# Of `resume`: go on with other values of what may change.
ALLOW_CHANGES = "allow_changes"


class Resumption(NamedTuple):
    """Where training begins.

    Attributes:
        path: the checkpoint; None begins anew.
        step: the optimizer steps that were taken before it was saved.
        notes: what the user has to know of it, a line each.
        opened: what the checkpoint holds, read and verified, in the process that found it.
    """

    path: Path | None = None
    step: int = 0
    notes: Sequence[str] = ()
    opened: dict[str, Any] | None = None


def find_resumption(
    run: Run, config: DictConfig, meaning: str, *, is_sharded: bool
) -> tuple[Resumption, dict[str, Any]]:
    """Find where a run resumes, and what that adds to its record: the first rank does, for all.

    Args:
        run: the run, its record as it was.
        config: under which it resumes.
        meaning: the fingerprint of that, as it was composed.
        is_sharded: whether each device reads what it needs of a checkpoint.

    Raises:
        UserError: there are checkpoints, but none of them can be used.
    """
    if not distributed.is_first():
        return distributed.broadcast(None)
    resume = resumption(run, is_sharded=is_sharded)
    added = segments(run, resume, config=config, meaning=meaning)
    distributed.broadcast((resume._replace(opened=None), added))
    return resume, added


def resumption(run: Run, *, is_sharded: bool = False) -> Resumption:
    """Find the checkpoint that a run goes on from, whole and its own.

    One that is damaged or gone is replaced by the one that was saved before it.

    Raises:
        UserError: there are checkpoints, but none of them can be used.
    """
    if not run.has_last:
        return Resumption()
    read, notes = open_whole if is_sharded else read_whole, []
    try:
        checkpoint = read(run.last)
    except (DamagedCheckpointError, FileNotFoundError) as error:
        if not fall_back(run.last):
            raise ConfigError(
                f"{error}, and there is no whole one from before it; {ways_out(run)}"
            ) from error
        checkpoint = read(run.last)
        notes.append(
            f"note      {error}: going on from the checkpoint before it, of step {checkpoint['global_step']}"
        )
    run.require_wrote(run.last, checkpoint.get("run"))
    if run.best.exists():
        try:
            stamp = header_of(run.best).get("run")
        except (ConfigError, DamagedCheckpointError) as error:
            raise ConfigError(
                f"{display_path(run.best)} is damaged; delete it, and the next validation writes another"
            ) from error
        run.require_wrote(run.best, stamp)
    return Resumption(
        run.last, checkpoint["global_step"], notes, opened=None if is_sharded else checkpoint
    )


def in_the_same_precision(hardware: Hardware, run: Run, config: DictConfig) -> Hardware:
    """Return the hardware in the precision that `auto` became when the run began, or in another run of its sweep.

    On a CPU `auto` is measured, and at another time the measurement may come out the other way: points of a sweep
    would differ in more than their overrides.
    """
    if config.hardware.precision != "auto":
        return hardware
    if not config.rerun and run.has_last and run.config.is_file():
        before = read_yaml(run.config).get("hardware") or {}
        if before.get("accelerator") == hardware.accelerator:
            return replace(hardware, precision=before["precision"])
    folder = os.environ.get(sweeps.FOLDER)
    if folder is None or hardware.accelerator != "cpu":
        return hardware
    settled = sweeps.Sweep(Path(folder)).settle("precision on cpu", hardware.precision)
    if settled not in ("bf16", 32):
        file = Path(folder) / sweeps.SETTLED
        raise ConfigError(
            f"{file}: precision on cpu is {settled!r}, not bf16 or 32; delete the file"
        )
    return replace(hardware, precision=settled)


def segments(run: Run, resume: Resumption, *, config: DictConfig, meaning: str) -> dict[str, Any]:
    """What a run's record has to say of its parts, where one begins now in which other values hold.

    Runs that were never changed have no such entries. One that was is no repetition of a run that was trained by
    its present values from the start on, so its recipe is another.

    Args:
        run: the run, its record as it was.
        resume: where it goes on.
        config: under which it goes on.
        meaning: the fingerprint of that, as it was composed.
    """
    known = [
        {**each, "from_step": min(each["from_step"], resume.step)}
        for each in run.record.get("segments") or []
    ]
    if resume.path is not None and run.record.get("fingerprint", meaning) != meaning:
        first = {"from_step": 0, "fingerprint": run.record["fingerprint"], "changes": {}}
        now = {
            "from_step": resume.step,
            "fingerprint": meaning,
            "changes": changes_since(run, config),
        }
        known = [*(known or [first]), now]
    if resume.path is None or not known:
        return {"segments": None} if "segments" in run.record else {}
    parts = {str(place): each for place, each in enumerate(known)}
    return {"segments": known, "recipe": fingerprint({"recipe": recipe(config), "segments": parts})}


def changes_since(run: Run, config: DictConfig) -> dict[str, str]:
    """In what a configuration differs from the one that a run was last trained under, by key."""
    before = read_yaml(run.config)
    if "classes" in config.data and config.data.classes is None:
        before.data.classes = None  # those that were found had been written down
    for key in ("weights.path", "weights.base"):  # which are saved as absolute paths
        old, new = OmegaConf.select(before, key), OmegaConf.select(config, key)
        if old and new and Path(old).resolve() == Path(new).resolve():
            OmegaConf.update(before, key, new)
    return fingerprint_changes(before, config)


def require_last(run: Run) -> None:
    """Refuse to begin anew where a run was trained whose last checkpoint is gone.

    Raises:
        ConfigError: it is gone.
    """
    if has_lost_last(run):
        raise ConfigError(
            f"{display_path(run.last)}: is gone, so this run cannot go on, and beginning anew would replace what it "
            f"has learned; {ways_out(run)}"
        )


def has_lost_last(run: Run) -> bool:
    """Whether a run was trained, and the checkpoint to go on from is no longer there."""
    was_saved = run.status == "done" or run.record.get("trained") or recorded_digests(run.last)
    return bool(was_saved or run.best.exists()) and not run.has_last


def ways_out(run: Run) -> str:
    """What to do with a run that cannot go on: the commands that work."""
    again = "rerun=true trains it again, and keeps this one aside"
    if not (run.config.is_file() and _is_own(run)):
        return again
    path = shell.quoted_word(f"weights.path={display_path(run.path)}")
    return f"weights=run {path} name=NEW begins another run with its best weights, {again}"


def _is_own(run: Run) -> bool:
    """Whether a run's best checkpoint is whole, and the run's."""
    try:
        run.require_wrote(run.best, open_whole(run.best).get("run"))
    except (UserError, FileNotFoundError):
        return False
    return True
