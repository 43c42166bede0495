"""Processor seconds of a command until its first training step or its first generated token.

    python experiments/startup/measure.py [LABEL=PYTHON …] [--rounds 5] [--json]

Each environment is given by its Python, for example one with transformers and one without; the default is this
environment. Environments and commands are measured in turn, and the median of the rounds is printed. The first
round is not counted: it reads the files into the cache of the operating system.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = (
    *("size=nano", "tokenizer=byte", "hardware=cpu", "hardware.precision=32", "hardware.threads=1"),
    *("callbacks.samples=null", "callbacks.picture=null", "trainer.val_every=1000"),
)
STOP = (
    "trust=[first_step]",
    "+callbacks.stop={_target_: first_step.FirstStep}",
)
COMMANDS = {
    "llm --help": ["--help"],
    "llm train --help": ["train", "--help"],
    "first step": ["train", *SMALL, *STOP, "rerun=true", "name=first_step"],
    "first token": ["generate", "weights.path=outputs/pretraining/run", "max_tokens=1"],
}


def processor_seconds(python: str, words: list[str], folder: Path) -> float:
    """Run a command to its end, and return the user and system time of its process."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "LLM_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    process = subprocess.Popen(
        [Path(python).with_name("llm"), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"llm {' '.join(words)}: {process.stderr.read().decode()}")
    return usage.ru_utime + usage.ru_stime


def measure(pythons: dict[str, str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median of each command in each environment."""
    found = {label: {name: [] for name in COMMANDS} for label in pythons}
    with tempfile.TemporaryDirectory() as name:
        folders = {label: Path(name) / str(number) for number, label in enumerate(pythons)}
        for label, folder in folders.items():
            folder.mkdir()
            prepare = ["train", *SMALL, "trainer.max_steps=1", "name=run"]
            processor_seconds(pythons[label], prepare, folder)
        for number in range(rounds + 1):
            for command, words in COMMANDS.items():
                for label, folder in folders.items():
                    seconds = processor_seconds(pythons[label], words, folder)
                    found[label][command] += [seconds] if number else []
    return {
        label: {command: statistics.median(times) for command, times in each.items()}
        for label, each in found.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", metavar="LABEL=PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in arguments.pythons) or {"this": sys.executable}
    result = measure(pythons, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
    else:
        for label, each in result.items():
            print(label, *(f"{name} {seconds:.2f} s" for name, seconds in each.items()), sep="  ")
