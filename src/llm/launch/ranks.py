"""Starting the ranks of a run on this machine, monitoring them, and ending them together.

A rank is the process of one device. It runs the same command as this process, with torchrun's environment variables.
If Lightning started the ranks and one of them failed, the others would wait forever.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from llm import distributed, signals
from llm.config.build import config_errors_at
from llm.config.composed import Composed
from llm.config.errors import ConfigError, UserError
from llm.files import read_object, write_json
from llm.hardware import Hardware, cores
from llm.launch.gpu_pool import passive_waiting
from llm.launch.job_file import job_command, write_composed
from llm.runs import Run
from llm.terminal.console import printable
from llm.training.preflight import require_even_shares

# Environment variable with the folder of the ranks' error reports.
REPORTS = "LLM_RANK_REPORTS"
GRACE = 5.0  # seconds for the other ranks to detect and record a failure
POLL = 0.1  # seconds between two checks


def adopt_slurm() -> None:
    """Set torchrun's variables from srun's, if srun started several tasks."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or distributed.is_rank():
        return
    on_each = tasks_on_each_node(tasks)
    nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
    address = SLURMEnvironment.resolve_root_node_address(nodes)
    port = 15000 + int(os.environ["SLURM_JOB_ID"]) % 10000  # every task computes the same port
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        WORLD_SIZE=str(tasks),
        LOCAL_WORLD_SIZE=str(on_each),
        GROUP_RANK=os.environ.get("SLURM_NODEID", "0"),
        MASTER_ADDR=os.environ.get("MASTER_ADDR", address),
        MASTER_PORT=os.environ.get("MASTER_PORT", str(port)),
        TORCHELASTIC_RUN_ID=os.environ["SLURM_JOB_ID"],
    )


def tasks_on_each_node(tasks: int) -> int:
    """Return the number of srun's tasks on each machine.

    Raises:
        ConfigError: the machines have different numbers of tasks.
    """
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    # For example `4(x2),3`: four tasks on each of two machines, three on another.
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    numbers = {re.sub(r"\(x\d+\)", "", count) for count in counts.split(",")}
    if len(numbers) > 1 or tasks % nodes:
        raise ConfigError(
            f"srun: {tasks} tasks are unevenly distributed on {nodes} machines ({counts}); start the same number on "
            "each, with --ntasks-per-node"
        )
    return tasks // nodes


def place_hardware(hardware: Hardware, config: DictConfig) -> Hardware:
    """Return the hardware with its devices counted.

    Raises:
        ConfigError: the devices are not available, or the batches cannot be divided evenly among them.
    """
    with config_errors_at("hardware", Hardware):
        placed = hardware.place()
    require_even_shares(config, placed)
    return placed


class Node(NamedTuple):
    """This machine.

    Attributes:
        number: its number among the machines of the run, from 0.
        address: address of machine 0, to which all ranks connect.
        port: port on machine 0.
    """

    number: int
    address: str
    port: int


def waiting_variables(hardware: Hardware) -> dict[str, str]:
    """Return the variables of `passive_waiting` if several ranks share a CPU, otherwise none."""
    assert hardware.devices != "auto"
    if hardware.accelerator != "cpu" or hardware.devices == 1:
        return {}
    given = hardware.threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    return passive_waiting(given or max(1, cores() // hardware.devices))


def this_node(num_nodes: int) -> Node:
    """Return this machine, from the environment variables if there are several.

    Raises:
        ConfigError: a variable is missing.
    """
    if num_nodes == 1:
        return Node(0, "127.0.0.1", 0)
    names = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"hardware.num_nodes: {num_nodes} machines need {', '.join(missing)} in the environment; set them on each "
            "machine (its number from 0, and the address and port of machine 0), or start with torchrun or srun"
        )
    number, address, port = (os.environ[name] for name in names)
    return Node(int(number), address, int(port))


def launch_ranks(composed: Composed, hardware: Hardware) -> int:
    """Run one rank for each device of this machine until all have ended.

    The output of the first rank is printed, that of another only if it explains a failure.

    Returns:
        The exit status: 0, 130 or 143 after an interruption, or that of the rank that failed first.
    """
    assert hardware.devices != "auto"
    node = this_node(hardware.num_nodes)
    with tempfile.TemporaryDirectory(prefix="llm-ranks-") as folder:
        store = None if node.number else open_store(node)
        shared = {
            **os.environ,
            "WORLD_SIZE": str(hardware.world),
            "LOCAL_WORLD_SIZE": str(hardware.devices),
            "GROUP_RANK": str(node.number),
            "MASTER_ADDR": node.address,
            "MASTER_PORT": str(store.port if store else node.port),
            "TORCHELASTIC_RUN_ID": "llm",
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # this process has the store, not rank 0
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
            REPORTS: folder,
            **waiting_variables(hardware),
        }
        first = node.number * hardware.devices
        file = Path(folder) / "run.yaml"
        write_composed(file, composed)
        command = job_command("train", file, composed.config)
        numbers = ((first + local, local) for local in range(hardware.devices))
        ranks = [
            Rank(number, command, shared | {"RANK": str(number), "LOCAL_RANK": str(local)})
            for number, local in numbers
        ]
        return Monitor(ranks, Path(composed.directory).absolute()).wait()


def open_store(node: Node) -> TCPStore:
    """Open the store through which all ranks connect. It closes when the returned object is deleted."""
    return TCPStore(node.address, node.port, is_master=True, wait_for_workers=False)


class Rank:
    """A process of the run.

    It has its own session, so Ctrl-C reaches only the launcher, which sends each rank one signal. Its standard input
    is a pipe from the launcher: when the launcher ends, the rank ends too.
    """

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.number = number
        folder = Path(environment[REPORTS])
        self.report_file = folder / f"{number}.json"
        self.log = folder / f"{number}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=None if number == 0 else log,
                stderr=None if number == 0 else log,
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """The return code as in `subprocess`; None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.status is None:
            self.process.send_signal(number)

    def report(self) -> dict[str, Any]:
        """Return its error as made by `error_report`; empty if there is none."""
        return read_object(self.report_file) if self.report_file.is_file() else {}


class Failure(NamedTuple):
    """Why a run failed.

    Attributes:
        message: one line, for the run's record.
        text: the text to print.
        status: the exit status.
    """

    message: str
    text: str
    status: int


class Monitor:
    """The launcher's monitor of the ranks."""

    def __init__(self, ranks: Sequence[Rank], directory: Path) -> None:
        self.ranks = ranks
        self.directory = directory
        self.signals: list[int] = []

    def wait(self) -> int:
        """Pass signals on to the ranks until they have ended, and return the exit status.

        If a rank fails, the others are ended and the reason is printed.
        """
        with signals.received(self._pass_on):
            try:
                while self._some_run() and not self._failed():
                    time.sleep(POLL)
                if self._failed():
                    return self._fail()
                return max(rank.status or 0 for rank in self.ranks)
            finally:
                self._kill()

    def _pass_on(self, number: int, frame: Any) -> None:
        self.signals.append(number)
        for rank in self.ranks:
            rank.send(number if len(self.signals) < 3 else signal.SIGKILL)

    def _some_run(self) -> bool:
        return any(rank.status is None for rank in self.ranks)

    def _failed(self) -> list[int]:
        """Return the numbers of the ranks that have failed so far, without those that a signal stopped."""
        well = (None, 0, *signals.INTERRUPTED)
        return [rank.number for rank in self.ranks if rank.status not in well]

    def _fail(self) -> int:
        """Give the other ranks time to detect the failure, end them, and print the reason."""
        first = self._failed()
        deadline = time.monotonic() + GRACE
        while self._some_run() and time.monotonic() < deadline:
            time.sleep(POLL)
        self._kill()
        if self._was_stopped():
            return signals.status_of(self.signals[0])
        failure = explain_failure(self.ranks, first)
        print(printable(failure.text), file=sys.stderr, flush=True)
        self._record(failure)
        return failure.status

    def _was_stopped(self) -> bool:
        """Return whether a signal ended the ranks. Outside of training, some may hang after the first signal."""
        has_ended = any(rank.status in signals.INTERRUPTED for rank in self.ranks)
        return len(self.signals) >= (1 if has_ended else 2)

    def _kill(self) -> None:
        for rank in self.ranks:
            rank.send(signal.SIGKILL)
        for rank in self.ranks:
            rank.process.wait()

    def _record(self, failure: Failure) -> None:
        """Write the reason to the run's record, if the first of the ranks has claimed the run."""
        run = Run(self.directory)
        if run.record.get("process") == self.ranks[0].process.pid and run.status != "done":
            run.finish("failed", error=failure.message)


def explain_failure(ranks: Sequence[Rank], ended: Sequence[int]) -> Failure:
    """Return the failure that ended the run, not one that it caused in other ranks.

    Args:
        ranks: all ranks of this machine; all have ended.
        ended: numbers of those that ended before the others were killed.
    """
    reports = {rank.number: rank.report() for rank in ranks if rank.report()}
    silent = [rank for rank in ranks if rank.number in ended and rank.number not in reports]
    # When a process is killed, its peers lose their connections and abort, so an abort is not the first failure.
    killed = [rank for rank in silent if (rank.status or 0) < 0 and rank.status != -signal.SIGABRT]
    if reports and not killed:
        number, report = min(reports.items(), key=lambda each: each[1]["time"])
        message = report["message"]
        if not report["is_mistake"]:
            message = f"rank {number} failed: {message}"
        return Failure(message, "\n".join([*report["traceback"], message]), report["status"])
    return unreported_failure((killed or silent)[0])


def unreported_failure(rank: Rank) -> Failure:
    """Return the failure of a rank that wrote no report, with the end of its output."""
    status = rank.status or 1
    how = f"ended with status {status}"
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
    if status == -signal.SIGKILL:
        how += ", by a user or because memory ran out"
    message = f"rank {rank.number} {how}; its peers were ended"
    tail = rank.log.read_text("utf-8", "replace").splitlines()[-20:]
    return Failure(message, "\n".join([*tail, message]), status if status > 0 else 128 - status)


@contextmanager
def report_failure() -> Iterator[None]:
    """In a rank that this program launched: end when the launcher ends, and report errors to it."""
    folder = os.environ.get(REPORTS)
    if folder is None or not distributed.is_rank():
        yield
        return
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    signals.listen(signals.stop)
    try:
        yield
    except Exception as error:
        report = error_report(error)
        write_json(Path(folder) / f"{distributed.world().rank}.json", report)
        raise SystemExit(report["status"]) from None


def error_report(error: Exception) -> dict[str, Any]:
    """Return an error as plain data for the launcher."""
    is_mistake = isinstance(error, UserError)
    return {
        "time": time.time(),
        "message": str(error) if is_mistake else f"{type(error).__name__}: {error}",
        "traceback": [] if is_mistake else "".join(traceback.format_exception(error)).splitlines(),
        "is_mistake": is_mistake,
        "status": error.status if is_mistake else 1,
    }


def _end_with_launcher() -> None:
    os.read(0, 1)  # waits until the launcher ends, because nothing is ever written
    os._exit(1)
