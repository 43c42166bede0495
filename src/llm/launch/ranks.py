"""Starting the ranks of a run on this machine, watching them, and ending them together.

A rank is a process of its own for each device, started with the command that started this one and with
torchrun's environment. Lightning would start them itself, but it leaves the others waiting when one
dies, and each of them to print its own traceback.
"""

import json
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

import torch
from omegaconf import DictConfig

from llm import distributed, signals
from llm.config.build import config_errors_at
from llm.config.composed import Composed, all_trusted
from llm.config.errors import ConfigError, UserError
from llm.hardware import Hardware, cores
from llm.launch.gpu_pool import patience
from llm.launch.job_file import write_composed
from llm.runs import Run
from llm.terminal.console import printable
from llm.training.preflight import require_even_shares

# Names the folder where a rank leaves the reason of its failure, for the launcher to tell.
REPORTS = "LLM_RANK_REPORTS"
GRACE = 5.0  # seconds in which the others may see for themselves that one has failed, and record it
POLL = 0.1


def adopt_slurm() -> None:
    """Take srun's variables for torchrun's, where srun started several of this process."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or distributed.is_rank():
        return
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    on_each = tasks_on_each_node(tasks)
    nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
    address = SLURMEnvironment.resolve_root_node_address(nodes)
    port = 15000 + int(os.environ["SLURM_JOB_ID"]) % 10000  # which all can work out
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
    """How many of so many tasks srun has started on each machine.

    Raises:
        ConfigError: not on all as many.
    """
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    # Such as `4(x2),3`: four on each of two machines, three on another.
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    numbers = {re.sub(r"\(x\d+\)", "", count) for count in counts.split(",")}
    if len(numbers) > 1 or tasks % nodes:
        raise ConfigError(
            f"srun started {tasks} tasks unevenly on {nodes} machines ({counts}): give it as many for each, with "
            "--ntasks-per-node"
        )
    return tasks // nodes


def place_hardware(hardware: Hardware, config: DictConfig) -> Hardware:
    """Return the hardware with its devices counted, after a check that they share the batches evenly.

    Raises:
        ConfigError: the devices are not there, or do not.
    """
    with config_errors_at("hardware"):
        placed = hardware.place()
    require_even_shares(config, placed)
    return placed


def resolve_hardware(hardware: Hardware, config: DictConfig) -> Hardware:
    """Return the hardware with every `auto` replaced, once its ranks run.

    Raises:
        ConfigError: the devices are not there, or do not share the batches evenly.
    """
    with config_errors_at("hardware"):
        resolved = hardware.resolve()
    require_even_shares(config, resolved)
    return resolved


def are_missing(hardware: Hardware) -> bool:
    """Whether there are several devices and nobody has started a rank for each."""
    return hardware.world > 1 and not distributed.is_rank()


class Node(NamedTuple):
    """This machine among those of the run.

    Attributes:
        number: from 0.
        address: of machine 0, where all ranks meet.
        port: there.
    """

    number: int
    address: str
    port: int


def waiting(hardware: Hardware) -> dict[str, str]:
    """How the threads of ranks that share a CPU wait for one another."""
    assert hardware.devices != "auto"
    if hardware.accelerator != "cpu" or hardware.devices == 1:
        return {}
    given = hardware.threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    return patience(given or max(1, cores() // hardware.devices))


def this_node(num_nodes: int) -> Node:
    """What the environment says of this machine; the only one says it itself.

    Raises:
        ConfigError: there are several machines, and a variable is missing.
    """
    if num_nodes == 1:
        return Node(0, "127.0.0.1", 0)
    names = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"hardware.num_nodes={num_nodes}: set {', '.join(missing)} on each machine (its number from 0 "
            "on, and where machine 0 is reached), or start with torchrun or srun"
        )
    number, address, port = (os.environ[name] for name in names)
    return Node(int(number), address, int(port))


def launch_ranks(composed: Composed, hardware: Hardware) -> int:
    """Run `llm train` once for each device of this machine, and return when all have ended.

    The first rank prints for all: what the others print is shown only if it explains a failure.

    Args:
        composed: what each rank trains; it composes nothing itself.
        hardware: placed.

    Returns:
        The exit status: 0, 130 or 143 after an interruption, or that of the rank that failed first.
    """
    assert hardware.devices != "auto"
    node = this_node(hardware.num_nodes)
    with tempfile.TemporaryDirectory(prefix="llm-ranks-") as folder, meeting(node) as port:
        shared = {
            **os.environ,
            "WORLD_SIZE": str(hardware.world),
            "LOCAL_WORLD_SIZE": str(hardware.devices),
            "GROUP_RANK": str(node.number),
            "MASTER_ADDR": node.address,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "llm",
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the meeting place is here, not at rank 0
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
            REPORTS: folder,
            **waiting(hardware),
        }
        first = node.number * hardware.devices
        file = Path(folder) / "run.yaml"
        write_composed(file, composed)
        job = ["train", "--job", str(file), *all_trusted(composed.config)]
        command = [sys.executable, "-m", "llm", *job]
        ranks = [
            Rank(
                first + local,
                command,
                shared | {"RANK": str(first + local), "LOCAL_RANK": str(local)},
            )
            for local in range(hardware.devices)
        ]
        return Watch(ranks, Path(composed.directory).absolute()).until_all_ended()


@contextmanager
def meeting(node: Node) -> Iterator[int]:
    """Hold the store where ranks find one another; yields its port. Only machine 0 has it."""
    if node.number > 0:
        yield node.port
        return
    store = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        node.address, node.port, is_master=True, wait_for_workers=False
    )
    yield store.port


class Rank:
    """One process of the run.

    It stands in a session of its own, so that Ctrl-C in the terminal reaches the launcher alone, which
    tells each rank once. Its standard input is a pipe that only the launcher holds: when that ends, the
    rank does.

    Args:
        number: among all ranks.
        command: what it runs.
        environment: all of it.
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
        """As of `subprocess`; None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.status is None:
            self.process.send_signal(number)

    def report(self) -> dict[str, Any]:
        """What it had to say of its failure, as of `report_of`; empty where nothing."""
        return json.loads(self.report_file.read_text("utf-8")) if self.report_file.is_file() else {}


class Failure(NamedTuple):
    """Why a run failed.

    Attributes:
        message: one line, for its record.
        text: what is printed.
        status: the exit status.
    """

    message: str
    text: str
    status: int


class Watch:
    """The launcher's eye on the ranks.

    Args:
        ranks: those of this machine, running.
        directory: of the run.
    """

    def __init__(self, ranks: Sequence[Rank], directory: Path) -> None:
        self.ranks = ranks
        self.directory = directory
        self.signals: list[int] = []

    def until_all_ended(self) -> int:
        """Wait; pass signals on; when one fails end the others, and say why. Returns the exit status."""
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
        """The ranks that have ended badly so far; one that was told to stop has not."""
        well = (None, 0, *signals.INTERRUPTED)
        return [rank.number for rank in self.ranks if rank.status not in well]

    def _fail(self) -> int:
        """Let the other ranks see what they can for themselves, end them, and say what it was."""
        first = self._failed()
        deadline = time.monotonic() + GRACE
        while self._some_run() and time.monotonic() < deadline:
            time.sleep(POLL)
        self._kill()
        if self._was_stopped():
            return signals.status_of(self.signals[0])
        failure = explain(self.ranks, first)
        print(printable(failure.text), file=sys.stderr, flush=True)
        self._record(failure)
        return failure.status

    def _was_stopped(self) -> bool:
        """Whether ranks ended because they were told to; outside of training the first to go leaves others waiting."""
        has_ended = any(rank.status in signals.INTERRUPTED for rank in self.ranks)
        return len(self.signals) >= (1 if has_ended else 2)

    def _kill(self) -> None:
        for rank in self.ranks:
            rank.send(signal.SIGKILL)
        for rank in self.ranks:
            rank.process.wait()

    def _record(self, failure: Failure) -> None:
        """Give the run's record the reason, where it is one of these ranks that holds it."""
        run = Run(self.directory)
        if run.record.get("process") == self.ranks[0].process.pid and run.status != "done":
            run.finish("failed", error=failure.message)


def explain(ranks: Sequence[Rank], ended: Sequence[int]) -> Failure:
    """Why ranks have failed: what came first, not what followed from it.

    Args:
        ranks: all that this machine had, none of which runs any more.
        ended: the numbers of those that ended by themselves, before the others were made to.
    """
    reports = {rank.number: rank.report() for rank in ranks if rank.report()}
    silent = [rank for rank in ranks if rank.number in ended and rank.number not in reports]
    # A process that is killed takes its peers' connections with it. Aborted are those that miss a peer.
    killed = [rank for rank in silent if (rank.status or 0) < 0 and rank.status != -signal.SIGABRT]
    if reports and not killed:
        return failure_of_report(*min(reports.items(), key=lambda each: each[1]["time"]))
    return untold((killed or silent)[0])


def failure_of_report(number: int, report: dict[str, Any]) -> Failure:
    """The failure that a rank reported: a mistake of the user's in a line, another with its traceback."""
    message = report["message"]
    if not report["is_mistake"]:
        message = f"rank {number} failed: {message}"
    lines = [*report["traceback"], message]
    return Failure(message, "\n".join(lines), report["status"])


def untold(rank: Rank) -> Failure:
    """The failure of a rank that had no time to speak, with the end of what it had printed."""
    status = rank.status or 1
    how = f"ended with status {status}"
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
    if status == -signal.SIGKILL:
        how += ", by a person or for want of memory"
    message = f"rank {rank.number} {how}; its peers were ended"
    tail = rank.log.read_text("utf-8", "replace").splitlines()[-20:]
    return Failure(message, "\n".join([*tail, message]), status if status > 0 else 128 - status)


@contextmanager
def reported() -> Iterator[None]:
    """In a rank of ours: end with the launcher, and leave it to tell of an error."""
    folder = os.environ.get(REPORTS)
    if folder is None or not distributed.is_rank():
        yield
        return
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    signals.listen(signals.stop)
    try:
        yield
    except Exception as error:
        report = report_of(error)
        file = Path(folder) / f"{distributed.world().rank}.json"
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(report), "utf-8")
        partial.replace(file)
        raise SystemExit(report["status"]) from None


def report_of(error: Exception) -> dict[str, Any]:
    """What a launcher has to know of an error, as plain data."""
    is_mistake = isinstance(error, UserError)
    return {
        "time": time.time(),
        "message": str(error) if is_mistake else f"{type(error).__name__}: {error}",
        "traceback": [] if is_mistake else "".join(traceback.format_exception(error)).splitlines(),
        "is_mistake": is_mistake,
        "status": error.status if is_mistake else 1,
    }


def _end_with_launcher() -> None:
    os.read(0, 1)  # nothing is ever written there
    os._exit(1)
