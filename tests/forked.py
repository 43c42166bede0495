"""`llm` commands in forked processes: real processes without five seconds of imports each."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["llm.training.lifecycle", "llm.__main__", "hydra"])


def llm(words: Sequence[str], log: Path, err: Path, environment: Mapping[str, str]) -> int:
    """Run `llm WORDS` to its end, and return its exit status, which is negative after a signal."""
    process = SERVER.Process(target=_main, args=(list(words), log, err, dict(environment)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _main(words: list[str], log: Path, err: Path, environment: dict[str, str]) -> None:
    for stream, file in ((sys.stdout, log), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["llm", *words]
    from llm.__main__ import main

    main()
