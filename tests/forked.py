"""`llm` commands and functions in forked processes: real processes without five seconds of imports each.

They are forked from a server, which imports `preloaded` when the first one starts.
"""

import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["preloaded"])


def start(target: Callable[..., Any], *args: Any) -> Any:
    """Start a process that calls a function; its arguments are pickled."""
    with pytest.MonkeyPatch.context() as patch:  # the server finds `preloaded` through PYTHONPATH
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    process = SERVER.Process(target=_call, args=(target, args))
    process.start()
    return process


def _call(target: Callable[..., Any], args: Sequence[Any]) -> None:
    assert "preloaded" in sys.modules, "the server failed to import it"
    target(*args)


def start_llm(
    words: Sequence[str],
    log: Path,
    err: Path,
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    given: str = "",
    module: str = "llm.__main__",
) -> Any:
    """Start `llm WORDS` in a session of its own.

    Args:
        words: words of the command line.
        log: file for the standard output.
        err: file for the standard error.
        environment: all environment variables.
        folder: working directory; that of the caller if None.
        given: standard input.
        module: name of the module whose `main` is called.
    """
    folder = folder or Path.cwd()
    return start(_main, list(words), log, err, dict(environment), folder, given, module)


def llm(
    words: Sequence[str], log: Path, err: Path, environment: Mapping[str, str], **more: Any
) -> int:
    """Run `llm WORDS` to its end, and return its exit status, which is negative after a signal."""
    process = start_llm(words, log, err, environment, **more)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the jobs of sweeps in forked processes."""
    from llm.launch import sweep_job  # imported after the shape checks are installed

    def run_process(job: Any, words: Sequence[str], environment: Mapping[str, str], _: Any) -> int:
        return llm(words[3:], job.file("log"), job.file("err"), environment)

    monkeypatch.setattr(sweep_job, "run_process", run_process)


def run(words: Sequence[str], given: str = "") -> CompletedProcess[str]:
    """Run `llm WORDS` to its end, and return its exit status and output like `subprocess.run`."""
    with tempfile.TemporaryDirectory() as folder:
        log, err = Path(folder, "log"), Path(folder, "err")
        status = llm(words, log, err, os.environ, given=given)
        return CompletedProcess(words, status, log.read_text("utf-8"), err.read_text("utf-8"))


def _main(
    words: list[str],
    log: Path,
    err: Path,
    environment: dict[str, str],
    folder: Path,
    given: str,
    module: str,
) -> None:
    os.setsid()
    os.chdir(folder)
    for stream, file in ((sys.stdout, log), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    receiver, sender = os.pipe()
    os.write(sender, given.encode())
    os.close(sender)
    os.dup2(receiver, 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["llm", *words]
    importlib.import_module(module).main()
