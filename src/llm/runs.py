"""A run directory: what was asked, what came of it, and how it goes on.

    outputs/pretraining/NAME/
      config.yaml      the composed configuration with every number resolved
      run.json         status, fingerprint, versions, seed, figures
      tokenizer.json   the tokenizer, whole
      checkpoints/     best.ckpt (weights), last.ckpt (everything that exact resume needs), each with its SHA-256
      metrics.csv      every metric by step
      samples.txt      what the model wrote as it learned
      loss.png         the loss picture
      predictions.csv, confusion.png, responses.json, …   what the task made of the test part

The directory is found again by its name, which the overrides give it: no time stamps.
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
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from llm.config.errors import ConfigError, UserError
from llm.config.fingerprint import recipe
from llm.config.overrides import values
from llm.files import RESTORE, FileError, read_object, require_own, sweep_partials, write_json
from llm.terminal import shell

Status = Literal["new", "pending", "running", "interrupted", "failed", "done"]

VERSIONS = ("llm-hydra", "torch", "lightning", "hydra-core", "numpy", "tiktoken", "tokenizers")
FORMAT = 2  # of a run directory; raised when an older one cannot be read any more
# Entries of a record that a checkpoint repeats, so that no other run goes on from it.
OWN = ("fingerprint", "data", "base")
# What a record holds where it holds it; the other entries are only shown.
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "task", "command", "error", "fingerprint", "recipe", "data"), (str,)),
    **dict.fromkeys(("corpus", "vocabulary", "base", "status", "started"), (str,)),
    **dict.fromkeys(("steps", "stopped_at", "max_steps", "seconds"), (int, float)),
    "seed": (int, float, str),
    "trained": (bool,),
    "segments": (list,),
}
# The experiments that train runs of a task; without one a run is pretrained.
EXPERIMENTS = {
    "classification": "classify",
    "sft": "instruct",
    "dpo": "prefer",
    "reward": "reward",
    "grpo": "grpo",
}
# What a person would look at first, where the task makes it.
RESULTS = {
    "picture": "loss.png",
    "samples": "samples.txt",
    "confusion": "confusion.png",
    "predicted": "predictions.csv",
    "responses": "responses.json",
}


def run_metadata(
    config: DictConfig, overrides: Iterable[str], *, choices: Mapping[str, str | None]
) -> dict[str, Any]:
    """What a run is called by whoever compares it with others, for its record."""
    return {
        "seed": config.seed,
        "recipe": recipe(config),
        "task": choices.get("task"),
        "choices": dict(choices),
        "overrides": values(overrides),
    }


class ClaimedRunError(UserError):
    """Another process trains in the run directory."""

    status = 75  # EX_TEMPFAIL: nothing is wrong, later it may work


@dataclass
class Run:
    """One run directory on disk.

    Args:
        path: the directory; it need not exist yet.

    Raises:
        FileError: it holds a link that leads out of it, a pipe, or a damaged record.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        require_own(self.path, "checkpoints")
        if self._json.exists():
            self.record = _checked(read_object(self._json), self._json)

    @property
    def _json(self) -> Path:
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """The composed configuration."""
        return self.path / "config.yaml"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.path / "tokenizer.json"

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
        """Whether there is a checkpoint to resume from: the newest one, or the one before it."""
        return self.last.exists() or previous_of(self._checkpoint("last")).exists()

    @property
    def has_weights(self) -> bool:
        """Whether there is a checkpoint to use: `callbacks.checkpoints` may be left out."""
        return self.best.exists() or self.has_last

    @property
    def stamp(self) -> dict[str, Any]:
        """Entries of the record that a checkpoint repeats, so that it can be told from another run's."""
        return {key: self.record[key] for key in OWN if key in self.record}

    def require_wrote(self, file: Path, stamp: Any) -> None:
        """Refuse a checkpoint that another run has written.

        Args:
            file: the checkpoint.
            stamp: what it says of its run; empty in checkpoints of earlier versions.

        Raises:
            ConfigError: it is another run's.
        """
        for key, own in self.stamp.items():
            earlier = [each[key] for each in self.record.get("segments") or () if key in each]
            if isinstance(stamp, Mapping) and stamp.get(key, own) not in (own, *earlier):
                raise ConfigError(
                    f"{display_path(file)}: is the checkpoint of another run (its {key} is {stamp[key]}, that of this "
                    f"run {own}); put this run's own checkpoints back, choose another name=, or train again with "
                    "rerun=true"
                )

    @property
    def metrics(self) -> Path:
        """Every metric by step."""
        return self.path / "metrics.csv"

    @property
    def samples(self) -> Path:
        """What the model wrote as it learned."""
        return self.path / "samples.txt"

    @property
    def picture(self) -> Path:
        """The loss picture."""
        return self.path / "loss.png"

    def results(self) -> dict[str, Path]:
        """The files to look at that are there."""
        files = {what: self.path / name for what, name in RESULTS.items()}
        return {what: file for what, file in files.items() if file.is_file()}

    @property
    def status(self) -> Status:
        """Where the run stands; `new` when nothing was recorded."""
        return self.record.get("status", "new")

    @property
    def state(self) -> Status:
        """Where the run stands as seen from outside: one whose process died in mid-run is interrupted."""
        is_dead = self.status == "running" and not self._is_held()
        return "interrupted" if is_dead else self.status

    def update(self, **entries: Any) -> None:
        """Add entries to run.json, atomically: a reader sees the old record or the new one."""
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
        lock = self._lock()
        try:
            lock.acquire(timeout=1)  # who asks whether a run is alive holds it for a moment
        except Timeout:
            raise ClaimedRunError(
                f"another process is training in {self.path}: wait for it, or choose another name="
            ) from None
        try:
            self.__post_init__()  # what the process before may have recorded since
            self._mend()
            yield
        finally:
            lock.release()

    def _mend(self) -> None:
        """Put back what a killed process had set aside, and delete what it had not finished writing."""
        for path in map(self._checkpoint, ("best", "last")):
            if existing_checkpoint(path) != path:
                existing_checkpoint(path).rename(path)
            for leftover in (backup_path(path), parts_of(path)):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                leftover.unlink(missing_ok=True)
        sweep_partials(self.path, self.path / "checkpoints")

    def _lock(self) -> FileLock:
        return FileLock(self.path.parent / f".{self.path.name}.lock")

    def _is_held(self) -> bool:
        """Whether a process holds the directory, found out without making a file: it may be a stranger's."""
        lock = self._lock()
        try:
            if not Path(lock.lock_file).is_file():
                return False
            with lock.acquire(blocking=False):
                return False
        except OSError:  # Timeout is one: it is held; or nobody may ask, and the record is believed
            return True

    def start(self, **entries: Any) -> None:
        """Record that training begins (or goes on) now, and what it is that begins."""
        self.update(
            **entries,
            status="running",
            error=None,
            started=self.record.get("started", now()),
            commit=_git_commit(),
            versions=versions(),
            machine=_machine(),
            process=os.getpid(),
        )

    def finish(self, status: Status, **figures: Any) -> None:
        """Record how training ended."""
        self.update(status=status, ended=now(), **figures)

    def put_back(self, record: Mapping[str, Any]) -> None:
        """Let the record be as it was, after an attempt that changed nothing of the run."""
        self.record = {}
        self.update(**record)

    def archive(self) -> Path | None:
        """Rename an existing directory to make room for a fresh run; returns its new place."""
        if not (self._json.is_file() or self.has_weights):
            return None
        self.record = {}
        return archive_folder(self.path)


class ReadOnlyRun(Run):
    """A run directory for the ranks of a run that write nothing: the first one does."""

    def update(self, **entries: Any) -> None:
        """Remember what is being recorded."""
        self.record |= entries

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Nothing: the first rank holds the directory."""
        yield

    def archive(self) -> Path | None:
        """Begin afresh as the first rank does."""
        self.record = {}


def _checked(record: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a record in the format of this version, whose entries have the types that are sorted and compared.

    Raises:
        FileError: the format is another one, or an entry has another type.
    """
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
    """Rename a folder to make room for a fresh one; returns its new place."""
    number = 1
    while (aside := path.with_name(f"{path.name}~{number}")).exists():
        number += 1
    return path.rename(aside)


def previous_of(path: Path) -> Path:
    """Where the checkpoint is kept that another one, which is a file, has replaced."""
    return path.with_stem("previous")


def parts_of(path: Path) -> Path:
    """Where a checkpoint in parts is written while a file is in its place."""
    return path.with_name(f".{path.name}.parts")


def backup_path(path: Path) -> Path:
    """Where a checkpoint stands while one of the other form, a file or a folder, takes its place."""
    return path.with_name(f".{path.name}.before")


def existing_checkpoint(path: Path) -> Path:
    """Where a checkpoint is: aside, if the process was killed that was about to write another in its place."""
    aside = backup_path(path)
    return aside if aside.exists() and not path.exists() else path


def display_path(path: Path) -> Path:
    """A path relative to here where it lies below here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def require_run(
    path: str, key: str, *, tasks: Collection[str] = (), folder: str = "outputs"
) -> None:
    """Refuse what is not a run directory; name runs that are.

    Args:
        path: what was given.
        key: by which.
        tasks: those whose runs are meant; none for all.
        folder: where the runs to name are looked for.

    Raises:
        ConfigError: the folder does not hold the configuration of a run.
    """
    if Run(Path(path)).config.is_file():
        return
    found = [str(run.path) for run in list_runs(Path(folder), tasks)]
    kind = f"{' or '.join(tasks)} " if tasks else ""
    experiments = [f"experiment={EXPERIMENTS[task]}" for task in tasks if task in EXPERIMENTS]
    chosen = experiments[:1] if len(experiments) == len(tasks) else []
    train = shell.command_line(shell.program(), "train", *chosen)
    there = (
        f"{kind}runs here: {', '.join(found[:5])}"
        if found
        else f"there are no {kind}runs in {folder}/; train one with {train}"
    )
    raise ConfigError(f"{key}: {path} is not a run directory (it has no config.yaml); {there}")


def list_runs(folder: Path, tasks: Collection[str] = ()) -> list[Run]:
    """All run directories under `folder` whose records can be read, the newest first.

    Args:
        folder: of runs by kind, and of sweeps.
        tasks: those whose runs are wanted; none for all.
    """
    files = [file for depth in ("*/*", "sweeps/*/*/*") for file in folder.glob(f"{depth}/run.json")]
    runs = []
    for file in sorted(files, key=lambda file: -file.stat().st_mtime):
        with suppress(FileError):
            runs.append(Run(file.parent))
    named = (run for run in runs if "~" not in run.path.name)
    return [run for run in named if not tasks or run.record.get("task") in tasks]


def now() -> str:
    """The time, with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def versions() -> dict[str, str]:
    """What figures depend on: the versions of Python and of the packages that compute them."""
    found = {"python": platform.python_version()}
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def _git_commit() -> str | None:
    """The commit of the code that runs, with `-dirty` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
