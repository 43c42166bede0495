"""Speed guards, measured alone: `make test` runs them after everything else.

They run as processes of their own, with the run-time check of shapes off.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

pytestmark = [pytest.mark.alone, pytest.mark.slow]


def test_help_answers_in_under_half_a_second():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "llm", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


def _trainer_overhead(*options):
    """Return what the default trainer, callbacks and loggers add to a step of a very small model."""
    command = [
        sys.executable,
        str(EXPERIMENTS / "trainer_overhead" / "measure.py"),
        *options,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_trainer_adds_900_calls_to_a_step_at_most():
    """They are its half millisecond of Python; their number does not depend on the machine, as the time does."""
    added = _trainer_overhead("--calls", "--steps", "200")
    assert added["difference"] <= 900, added


def test_the_trainer_adds_a_quarter_to_a_very_small_step_at_most():
    """Shares between 11 and 17 % were measured on five machines; a call that takes long would add more.

    Other work on the machine can only increase the share, so the best of up to three measurements counts.
    """
    shares = []
    for _ in range(3):
        shares.append(_trainer_overhead("--steps", "1000")["share"])
        if shares[-1] <= 0.25:
            break
    assert min(shares) <= 0.25, shares


def test_cached_generation_is_as_fast_as_hugging_faces():
    """Four layers of the 124M model are enough, because matrix products take most of the time."""
    pytest.importorskip("transformers")
    command = [
        *(sys.executable, str(EXPERIMENTS / "generation_speed" / "benchmark.py")),
        *("--layers", "4", "--new-tokens", "48", "--rounds", "7"),
    ]
    threads = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
    ratios = []
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=threads)
        (row,) = [line for line in done.stdout.splitlines() if "llm.generation" in line]
        ratios.append(float(row.split("|")[3].split()[0]))
        if ratios[-1] >= 1:
            break
    assert max(ratios) >= 1, ratios
