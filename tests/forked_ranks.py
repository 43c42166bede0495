"""`llm` with ranks that are forked from their launcher: real processes without five seconds of imports each."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import distributed

import llm.__main__
from llm.launch import ranks

senders: list[int] = []  # ends of the ranks' standard inputs that only the launcher holds open


class Forked:
    """A rank with the part of the interface of `subprocess.Popen` that its launcher uses."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: BinaryIO | None,
        stderr: BinaryIO | None,
        **_: Any,
    ) -> None:
        receiver, sender = os.pipe()
        senders.append(sender)
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid:
            os.close(receiver)
            return
        status = 1
        try:
            os.setsid()
            os.dup2(receiver, 0)
            for each in senders:
                os.close(each)
            for number, file in ((1, stdout), (2, stderr)):
                if file is not None:
                    os.dup2(file.fileno(), number)
            status = run_rank(command[3:], env)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        return self._collect(os.WNOHANG)

    def wait(self) -> int | None:
        return self._collect(0)

    def _collect(self, options: int) -> int | None:
        if self.status is None:
            ended, status = os.waitpid(self.pid, options)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def run_rank(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `llm WORDS` in this new process, and return its exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = int(environment["RANK"])  # Lightning was imported before there were ranks
    sys.argv = ["llm", *words]
    status = 0
    try:
        llm.__main__.main()
    except SystemExit as end:
        status = int(end.code or 0)
    if distributed.is_initialized():
        distributed.destroy_process_group()  # as the end of a process does
    return status


def main() -> None:
    """Run `llm` with the words of the command line."""
    ranks.subprocess = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE)
    llm.__main__.main()
