"""A run directory: configuration, results, and everything needed to resume.

    outputs/pretraining/NAME/
      config.yaml      the composed configuration with every value resolved
      run.json         status, fingerprint, versions, seed, metrics
      tokenizer.json   the tokenizer
      checkpoints/     best.ckpt (weights), last.ckpt (everything that exact resume needs), each with its SHA-256
      metrics.csv      every metric by step
      samples.txt      texts generated during training
      loss.png         the loss plot
      predictions.csv, confusion.png, responses.json, …   the task's results on the test part

The name of the directory is made from the overrides, without a time stamp, so that the same command finds it again.
"""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from llm.config.errors import ConfigError, UserError
from llm.config.fingerprint import recipe
from llm.config.overrides import key_of, values
from llm.files import RESTORE, FileError, delete_partials, read_object, require_own, write_json
from llm.terminal import shell

Status = Literal["new", "pending", "running", "interrupted", "failed", "done"]

VERSIONS = ("llm-hydra", "torch", "lightning", "hydra-core", "numpy", "tiktoken", "tokenizers")
FORMAT = 2  # of a run directory; increased when older directories can no longer be read
# Entries of a record that are repeated in each checkpoint, so that no other run resumes from it.
OWN = ("fingerprint", "data", "base")
# Types of the entries that are used; the others are only displayed.
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "task", "command", "error", "fingerprint", "recipe", "data"), (str,)),
    **dict.fromkeys(("corpus", "vocabulary", "base", "status", "started"), (str,)),
    **dict.fromkeys(("steps", "stopped_at", "max_steps", "seconds"), (int, float)),
    "seed": (int, float, str),
    "trained": (bool,),
    "segments": (list,),
}
# The experiment that trains a run of each task.
EXPERIMENTS = {
    "classification": "classify",
    "sft": "instruct",
    "dpo": "prefer",
    "reward": "reward",
    "grpo": "grpo",
}
# Result files, if the task writes them.
RESULTS = {
    "picture": "loss.png",
    "samples": "samples.txt",
    "confusion": "confusion.png",
    "predicted": "predictions.csv",
    "responses": "responses.json",
}


# Groups whose options a run takes from the weights that it begins from.
ARCHITECTURE = ("model", "size", "tokenizer")


def is_architecture(word: str) -> bool:
    """Return whether a group, a key or an override belongs to the model, its size or its tokenizer."""
    return key_of(word).partition(".")[0] in ARCHITECTURE


def recorded_words(record: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return a mapping in a record as texts; it is empty if the entry is missing or damaged."""
    found = record.get(name)
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, Mapping) else {}


def known_choices(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the option of each group in a record.

    A run that begins from weights has their architecture. Until it has started, its record does not say which.
    """
    choices = recorded_words(record, "choices")
    if choices.get("weights", "scratch") == "scratch" or "adopted" in record:
        return choices
    return {group: option for group, option in choices.items() if not is_architecture(group)}


def run_metadata(
    config: DictConfig, overrides: Iterable[str], *, choices: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return the entries of a record that comparisons use."""
    return {
        "seed": config.seed,
        "recipe": recipe(config),
        "task": choices.get("task"),
        "choices": dict(choices),
        "overrides": values(overrides),
    }


class ClaimedRunError(UserError):
    """Another process trains in the run directory."""

    status = 75  # EX_TEMPFAIL: not an error of the user, it may work later


@dataclass
class Run:
    """One run directory on disk, and the paths of its files.

    Args:
        path: the directory, which need not exist yet.
        record: the content of run.json.

    Raises:
        FileError: the directory contains a link that leads out of it, a pipe, or a damaged record.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.config = self.path / "config.yaml"
        self.tokenizer = self.path / "tokenizer.json"
        self.metrics = self.path / "metrics.csv"
        self.samples = self.path / RESULTS["samples"]
        self.picture = self.path / RESULTS["picture"]
        self._json = self.path / "run.json"
        require_own(self.path, "checkpoints")
        if self._json.exists():
            self.record = _checked(read_object(self._json), self._json)

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return existing_checkpoint(self._checkpoint("best"))

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return existing_checkpoint(self._checkpoint("last"))

    @property
    def has_last(self) -> bool:
        """Whether the newest or the previous checkpoint exists."""
        return self.last.exists() or previous_of(self._checkpoint("last")).exists()

    @property
    def has_weights(self) -> bool:
        """Whether a checkpoint exists; `callbacks.checkpoints` may have been left out."""
        return self.best.exists() or self.has_last

    @property
    def stamp(self) -> dict[str, Any]:
        """The entries of the record that are repeated in each checkpoint."""
        return {key: self.record[key] for key in OWN if key in self.record}

    def require_wrote(self, file: Path, stamp: Any) -> None:
        """Refuse, with a ConfigError, a checkpoint that another run has written.

        Args:
            file: the checkpoint.
            stamp: its `Run.stamp`; missing in checkpoints of earlier versions.
        """
        for key, own in self.stamp.items():
            earlier = [each[key] for each in self.record.get("segments") or () if key in each]
            if isinstance(stamp, Mapping) and stamp.get(key, own) not in (own, *earlier):
                raise ConfigError(
                    f"{display_path(file)}: is the checkpoint of another run (its {key} is {stamp[key]}, that of this "
                    f"run is {own}); restore this run's own checkpoints, choose another name=, or train again with "
                    "rerun=true"
                )

    def results(self) -> dict[str, Path]:
        """Return the existing result files."""
        files = {what: self.path / name for what, name in RESULTS.items()}
        return {what: file for what, file in files.items() if file.is_file()}

    @property
    def status(self) -> Status:
        """The recorded status; `new` if there is no record."""
        return self.record.get("status", "new")

    @property
    def state(self) -> Status:
        """The status, or `interrupted` for a run whose process was killed during training."""
        is_dead = self.status == "running" and not self._is_held()
        return "interrupted" if is_dead else self.status

    def update(self, **entries: Any) -> None:
        """Add entries to run.json, atomically."""
        self.record |= {"format": FORMAT, **entries}
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._json, self.record)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for this process.

        Raises:
            ClaimedRunError: another process holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = self._lock().acquire(timeout=1)  # `state` of another process holds it briefly
        except Timeout:
            raise ClaimedRunError(
                f"{self.path}: another process is training in this folder; wait for it, or choose another name="
            ) from None
        with held:
            self.__post_init__()  # read again: another process may have written the record
            self._clean_up()
            yield

    def _clean_up(self) -> None:
        """Restore checkpoints that a killed process had moved, and delete its incomplete files."""
        for path in map(self._checkpoint, ("best", "last")):
            if existing_checkpoint(path) != path:
                existing_checkpoint(path).rename(path)
            for leftover in (backup_path(path), parts_of(path)):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                leftover.unlink(missing_ok=True)
        delete_partials(self.path, self.path / "checkpoints")

    def _lock(self) -> FileLock:
        return FileLock(self.path.parent / f".{self.path.name}.lock")

    def _is_held(self) -> bool:
        """Return whether a process holds the directory, without creating a lock file in an untrusted folder."""
        lock = self._lock()
        try:
            if not Path(lock.lock_file).is_file():
                return False
            with lock.acquire(blocking=False):
                return False
        except OSError:
            # A Timeout: another process holds it. Otherwise the lock cannot be opened, and the recorded status is used.
            return True

    def start(self, **entries: Any) -> None:
        """Record that training begins or resumes, with further entries."""
        self.update(
            **entries,
            status="running",
            error=None,
            started=self.record.get("started", now()),
            commit=_git_commit(),
            versions=versions(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            process=os.getpid(),
        )

    def finish(self, status: Status, **entries: Any) -> None:
        """Record how training ended, with further entries."""
        self.update(status=status, ended=now(), **entries)

    def archive(self) -> Path | None:
        """Rename an existing directory for a new run of the same name, and return the new path."""
        if not (self._json.is_file() or self.has_weights):
            return None
        self.record = {}
        return archive_folder(self.path)


class ReadOnlyRun(Run):
    """A run directory on ranks after the first, which write nothing."""

    def update(self, **entries: Any) -> None:
        """Add entries to the record in memory."""
        self.record |= entries

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Do nothing: the first rank holds the directory."""
        yield

    def archive(self) -> Path | None:
        """Clear the record, as the first rank does."""
        self.record = {}


def _checked(record: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a record, or raise a FileError if its format or the type of an entry is wrong."""
    written = record.get("format", 1)
    if record and written != FORMAT:
        raise FileError(
            f"{file}: has format {written!r:.60}, and this version of llm reads format {FORMAT}; use the version that "
            "wrote it, or choose another name= for a new run"
        )
    for key, kinds in KINDS.items():
        value = record.get(key)
        if value is not None and type(value) not in kinds:
            words = " or ".join(kind.__name__ for kind in kinds)
            raise FileError(f"{file}: {key} is {value!r:.60}, not {words}; {RESTORE}")
    if record.get("status", "new") not in get_args(Status):
        known = ", ".join(get_args(Status))
        raise FileError(f"{file}: status is {record['status']!r:.60}, not {known}; {RESTORE}")
    return record


def archive_folder(path: Path) -> Path:
    """Rename a folder to NAME~1 or the next free number, and return the new path."""
    backups = (path.with_name(f"{path.name}~{number}") for number in count(1))
    return path.rename(next(backup for backup in backups if not backup.exists()))


def previous_of(path: Path) -> Path:
    """Return the path of the previous checkpoint, if checkpoints are files."""
    return path.with_stem("previous")


def parts_of(path: Path) -> Path:
    """Return the temporary path of a sharded checkpoint while a file is at its path."""
    return path.with_name(f".{path.name}.parts")


def backup_path(path: Path) -> Path:
    """Return the temporary path of a checkpoint while one of the other kind (file or folder) replaces it."""
    return path.with_name(f".{path.name}.before")


def existing_checkpoint(path: Path) -> Path:
    """Return the path of a checkpoint: its backup path if the process that was replacing it was killed."""
    backup = backup_path(path)
    return backup if backup.exists() and not path.exists() else path


def display_path(path: Path) -> Path:
    """Return a path relative to the current folder if it is inside it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def require_run(path: str, key: str, *, tasks: Collection[str] = ()) -> None:
    """Require a run directory.

    Args:
        path: the path.
        key: the key that has the path as its value.
        tasks: tasks of the runs that the error lists; empty for all.

    Raises:
        ConfigError: the path is not a run directory.
    """
    if Run(Path(path)).config.is_file():
        return
    found = [str(run.path) for run in list_runs(Path("outputs"), tasks)]
    kind = f"{' or '.join(tasks)} " if tasks else ""
    experiments = [f"experiment={EXPERIMENTS[task]}" for task in tasks if task in EXPERIMENTS]
    chosen = experiments[:1] if len(experiments) == len(tasks) else []
    train = shell.command_line(shell.program(), "train", *chosen)
    existing = f"there are no {kind}runs in outputs/; train one with {train}"
    if found:
        existing = f"{kind}runs here: {', '.join(found[:5])}"
    raise ConfigError(f"{key}: {path} is not a run directory (it has no config.yaml); {existing}")


def list_runs(folder: Path, tasks: Collection[str] = ()) -> list[Run]:
    """Return the run directories in `folder` with a readable record, newest first; empty `tasks` are all tasks."""
    files = [file for depth in ("*/*", "sweeps/*/*/*") for file in folder.glob(f"{depth}/run.json")]
    runs = []
    for file in sorted(files, key=lambda file: -file.stat().st_mtime):
        with suppress(FileError):
            runs.append(Run(file.parent))
    named = (run for run in runs if "~" not in run.path.name)
    return [run for run in named if not tasks or run.record.get("task") in tasks]


def now() -> str:
    """Return the time with its time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _git_commit() -> str | None:
    """Return the commit of this code, with `-dirty` after changes; None outside a checkout."""
    here = Path(__file__).parent
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
