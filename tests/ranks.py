"""Functions run by several ranks at once: processes that communicate over gloo, on the CPU."""

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import forked
import torch
from torch import distributed


def on_ranks(world: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list:
    """Return the results of a top-level function of a test file on several ranks, by rank.

    Args:
        world: number of ranks.
        function: called on each rank, with the environment variables of the caller (such as `LLM_CACHE`).
        args: arguments, the same on each rank; pickled.
        timeout: time after which all ranks are killed, in seconds.

    Raises:
        AssertionError: a rank failed (with its error) or did not end in time.
    """
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    work = (Path(sys.modules[function.__module__].__file__), function.__qualname__, args)
    processes: dict[Connection, Any] = {}
    for rank in range(world):
        ours, theirs = forked.SERVER.Pipe(duplex=False)
        environment = {**os.environ, **environment_of(rank, world, store.port)}
        processes[ours] = forked.start(_run, theirs, environment, sys.path, *work)
        theirs.close()
    try:
        return _results(processes, time.monotonic() + timeout)
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def environment_of(rank: int, world: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }


def _results(processes: Mapping[Connection, Any], deadline: float) -> list:
    results: dict[Connection, Any] = {}
    while len(results) < len(processes):
        pending = [connection for connection in processes if connection not in results]
        ready = wait(pending, max(0, deadline - time.monotonic()))
        assert ready, f"{len(pending)} of {len(processes)} ranks did not end in time"
        for connection in ready:
            rank = list(processes).index(connection)
            try:
                is_well, results[connection] = connection.recv()
            except EOFError:
                processes[connection].join()
                is_well, results[connection] = False, f"died: {processes[connection].exitcode}"
            assert is_well, f"rank {rank} {results[connection]}"
    return [results[connection] for connection in processes]


def _run(
    connection: Connection,
    environment: dict[str, str],
    path: list[str],
    file: Path,
    name: str,
    args: tuple,
) -> None:
    """Run the function in the new process."""
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    torch.set_num_threads(1)
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = int(environment["RANK"])  # Lightning was imported before there were ranks
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        result = getattr(module, name)(*args)
        if distributed.is_initialized():
            distributed.barrier()  # no rank exits while others still read from it
        connection.send((True, result))
    except BaseException:
        connection.send((False, f"failed:\n{traceback.format_exc()}"))
