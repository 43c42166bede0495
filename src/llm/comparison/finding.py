"""Search for runs in folders."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from llm.config.errors import ConfigError
from llm.runs import Run, display_path
from llm.sweeps import FILE, Sweep

# Levels below a folder that are searched: outputs/pretraining/NAME, outputs/STUDY/TASK/NAME.
DEEPEST = 4
# Errors of reading a damaged file.
READ_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def find(folders: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Return all runs in folders, each once and sorted by path, and a line for each unreadable file.

    Args:
        folders: run directories, sweeps, or folders above them.

    Raises:
        ConfigError: a folder does not exist or contains no run.
    """
    runs: dict[Path, Run] = {}
    damaged: set[str] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; name a sweep, a run, or a folder of runs")
        found = [*_readers(folder)]
        if not found:
            raise ConfigError(
                f"{folder}: contains no run; name a sweep, a run, or a folder of runs, such as outputs/pretraining"
            )
        for file, read in found:
            try:
                run = read()
                runs[run.path.resolve()] = run
            except READ_ERRORS as error:
                line = " ".join(str(error).split())
                damaged.add(f"{display_path(file)} is damaged and left out: {line}")
    return [runs[path] for path in sorted(runs)], sorted(damaged)


def _readers(folder: Path) -> Iterator[tuple[Path, Callable[[], Run]]]:
    """Yield each file that describes a run, with a function that reads it.

    Sweeps come last: their records replace those of the runs.
    """
    for file in _below(folder, "run.json"):
        yield file, partial(Run, file.parent)
    for file in _below(folder, FILE):
        try:
            jobs = Sweep(file.parent).jobs
        except READ_ERRORS as error:
            yield file, partial(_fail, error)
            continue
        for job in jobs:
            yield job.directory / "run.json", lambda job=job: job.run


def _fail(error: Exception) -> Run:
    raise error


def _below(folder: Path, name: str) -> list[Path]:
    """Return the files of this name, without archived runs (`NAME~1`) unless `folder` is one."""
    levels = ("*/" * depth for depth in range(DEEPEST))
    files = sorted(file for level in levels for file in folder.glob(f"{level}{name}"))
    return [file for file in files if file.parent == folder or "~" not in file.parent.name]
