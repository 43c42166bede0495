"""`llm VERB -m`: a process for each point of a sweep, so that no job inherits another's memory or state."""

import os
import subprocess
import sys
from collections.abc import Sequence

# What a launcher of parallel processes leaves behind, which would let a job take itself for one of many.
RANKS = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
INTERRUPTED = 130


def launch(verb: str, jobs: Sequence[Sequence[str]], options: Sequence[str] = ()) -> int:
    """Run the jobs one after another; one that fails does not stop the others, Ctrl-C does.

    Args:
        verb: what each job does.
        jobs: the overrides of each.
        options: flags before them, such as a folder of configs.

    Returns:
        The exit status: 0 if every job ended well, 130 after an interruption, else 1.
    """
    common = set.intersection(*map(set, jobs))
    environment = {name: value for name, value in os.environ.items() if name not in RANKS}
    failed = []
    for number, job in enumerate(jobs, start=1):
        label = " ".join(word for word in job if word not in common) or verb
        print(f"\n[{number}/{len(jobs)}] {label}", flush=True)
        status = _run([sys.executable, "-m", "llm", verb, *options, *job], environment)
        if status == INTERRUPTED:
            print(f"the sweep stopped at job {number} of {len(jobs)}; the same line goes on")
            return INTERRUPTED
        if status:
            failed.append(f"  {label} (status {status})")
    if failed:
        print(f"\n{len(failed)} of {len(jobs)} jobs failed:", *failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal tells the job as well, which saves and ends
            continue
