"""Finding the checkpoint that a run resumes from."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from llm import distributed, sweeps
from llm.checkpoints.checkpoint_file import fall_back, header_of, load_checkpoint, open_verified
from llm.checkpoints.checksums import DamagedCheckpointError, recorded_digests
from llm.config.errors import ConfigError, UserError
from llm.config.fingerprint import fingerprint, fingerprint_changes, recipe
from llm.files import read_yaml
from llm.hardware import Hardware
from llm.runs import Run, display_path
from llm.terminal import shell

# Value of `resume` that permits changes of some keys.
ALLOW_CHANGES = "allow_changes"


class Resumption(NamedTuple):
    """Where training begins.

    Attributes:
        path: the checkpoint; None to train from the start.
        step: optimizer steps at the checkpoint.
        notes: notes for the user, one line each.
        opened: the verified content of the checkpoint, in the process that has read it.
    """

    path: Path | None = None
    step: int = 0
    notes: Sequence[str] = ()
    opened: dict[str, Any] | None = None


def find_resumption(
    run: Run, config: DictConfig, meaning: str, *, is_sharded: bool
) -> tuple[Resumption, dict[str, Any]]:
    """Return where a run resumes, and the new entries of its record. The first rank decides for all ranks.

    Args:
        run: the run, with its earlier record.
        config: the configuration that it resumes with.
        meaning: the fingerprint of that configuration as composed.
        is_sharded: whether each device reads only its part of a checkpoint.

    Raises:
        UserError: there are checkpoints, but none of them can be used.
    """
    if not distributed.is_first():
        return distributed.broadcast(None)
    resume = find_checkpoint(run, is_sharded=is_sharded)
    added = segments(run, resume, config=config, meaning=meaning)
    distributed.broadcast((resume._replace(opened=None), added))
    return resume, added


def find_checkpoint(run: Run, *, is_sharded: bool) -> Resumption:
    """Find the last checkpoint of a run, and replace it by the previous one if it is damaged or missing.

    Raises:
        UserError: there are checkpoints, but none of them can be used.
    """
    if not run.has_last:
        return Resumption()
    read, notes = open_verified if is_sharded else load_checkpoint, []
    try:
        checkpoint = read(run.last)
    except (DamagedCheckpointError, FileNotFoundError) as error:
        if not fall_back(run.last):
            raise ConfigError(
                f"{error}, and there is no earlier one that is undamaged; {describe_remedies(run)}"
            ) from error
        checkpoint = read(run.last)
        notes.append(
            f"note      {error}: resuming from the previous checkpoint, of step {checkpoint['global_step']}"
        )
    run.require_wrote(run.last, checkpoint.get("run"))
    if run.best.exists():
        try:
            stamp = header_of(run.best).get("run")
        except (ConfigError, DamagedCheckpointError) as error:
            raise ConfigError(
                f"{display_path(run.best)} is damaged; delete it, and the next validation writes a new one"
            ) from error
        run.require_wrote(run.best, stamp)
    return Resumption(
        run.last, checkpoint["global_step"], notes, opened=None if is_sharded else checkpoint
    )


def keep_precision(hardware: Hardware, run: Run, config: DictConfig) -> Hardware:
    """Return the hardware with the precision that `auto` gave when the run began, or in another job of its sweep.

    On a CPU `auto` is a measurement, which may differ the next time.
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
    shared = sweeps.Sweep(Path(folder)).share_value("precision on cpu", hardware.precision)
    if shared not in ("bf16", 32):
        raise ConfigError(
            f"{Path(folder) / sweeps.SETTLED}: precision on cpu is {shared!r}, not bf16 or 32; delete the file"
        )
    return replace(hardware, precision=shared)


def segments(run: Run, resume: Resumption, *, config: DictConfig, meaning: str) -> dict[str, Any]:
    """Return the entries of a run's record about its segments: the steps trained with one configuration each.

    A run that was resumed without changes has none. A run with changes gets another recipe, because it differs from a
    run that had the last values from the start. The arguments are those of `find_resumption`.
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
    numbered = {str(number): each for number, each in enumerate(known)}
    return {
        "segments": known,
        "recipe": fingerprint({"recipe": recipe(config), "segments": numbered}),
    }


def changes_since(run: Run, config: DictConfig) -> dict[str, str]:
    """Return the changes of a configuration since a run was last trained, by key."""
    before = read_yaml(run.config)
    if "classes" in config.data and config.data.classes is None:
        before.data.classes = None  # the saved classes were found in the data
    for key in ("weights.path", "weights.base"):  # saved as absolute paths
        old, new = OmegaConf.select(before, key), OmegaConf.select(config, key)
        if old and new and Path(old).resolve() == Path(new).resolve():
            OmegaConf.update(before, key, new)
    return fingerprint_changes(before, config)


def require_last(run: Run) -> None:
    """Refuse to train from the start, with a ConfigError, if the last checkpoint of a trained run is missing."""
    was_saved = run.status == "done" or run.record.get("trained") or recorded_digests(run.last)
    if (was_saved or run.best.exists()) and not run.has_last:
        raise ConfigError(
            f"{display_path(run.last)}: is missing, so this run cannot resume, and training from the start would "
            f"replace its best weights; {describe_remedies(run)}"
        )


def describe_remedies(run: Run) -> str:
    """Return the overrides that work for a run that cannot resume."""
    again = "rerun=true trains it again and keeps a backup of this run"
    if not (run.config.is_file() and _has_best(run)):
        return again
    path = shell.quoted_word(f"weights.path={display_path(run.path)}")
    return f"weights=run {path} name=NEW starts another run from its best weights, {again}"


def _has_best(run: Run) -> bool:
    """Return whether a run's best checkpoint is undamaged and was written by this run."""
    try:
        run.require_wrote(run.best, open_verified(run.best).get("run"))
    except (UserError, FileNotFoundError):
        return False
    return True
