"""The CPU setting of nanoGPT on tiny Shakespeare, trained by nanoGPT's train.py and by `llm train` in turn.

    git clone https://github.com/karpathy/nanoGPT
    python experiments/shakespeare/compare.py --nanogpt nanoGPT [--seeds 1 2 3] [--threads 2]

Both train 2,000 steps in float32 with the options of nanoGPT's README for a CPU (4 layers, 4 heads, 128 wide, context
64, batch 12). The loss of both is the mean cross-entropy over the whole validation part in windows of 64 characters.
(nanoGPT prints the mean of twenty random batches.) Prints a Markdown table.
"""

import argparse
import csv
import json
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module
from torch.nn import functional as F

from llm.config.build import build

CONTEXT = 64
WORDS = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
    "--lr_decay_iters=2000 --dropout=0.0 --always_save_checkpoint=True"
).split()
# train.py sets a fixed seed. This program replaces the seed and runs the unchanged file.
SEEDED = """
import runpy, sys, torch
set_seed, seed = torch.manual_seed, int(sys.argv.pop(1))
torch.manual_seed = lambda _: set_seed(seed)
torch.set_num_threads(int(sys.argv.pop(1)))
sys.path.insert(0, ".")
runpy.run_path("train.py", run_name="__main__")
"""


def text() -> str:
    """Return the text of experiment=shakespeare, from the cache or by a verified download."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", ["experiment=shakespeare"])
    return "".join(build(config.data.source).documents())


def prepare(nanogpt: Path, characters: str) -> None:
    """Write the files of nanoGPT's data/shakespeare_char/prepare.py, without its download."""
    folder = nanogpt / "data" / "shakespeare_char"
    ids = {character: index for index, character in enumerate(sorted(set(characters)))}
    encoded = np.array([ids[character] for character in characters], dtype=np.uint16)
    split = int(0.9 * len(encoded))
    encoded[:split].tofile(folder / "train.bin")
    encoded[split:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(ids), "stoi": ids, "itos": {v: k for k, v in ids.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def run_nanogpt(nanogpt: Path, seed: int, threads: int) -> dict[str, float]:
    """Train with nanoGPT, and return the validation loss, seconds and tokens per second."""
    command = [sys.executable, "-c", SEEDED, str(seed), str(threads), *WORDS]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=nanogpt, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    times = [float(found) for found in re.findall(r"iter \d+: .*time ([\d.]+)ms", done.stdout)]
    sys.path.insert(0, str(nanogpt))
    from model import GPT, GPTConfig

    checkpoint = torch.load(nanogpt / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    tokens = np.fromfile(nanogpt / "data/shakespeare_char/val.bin", dtype=np.uint16).astype(
        np.int64
    )
    speed = 12 * CONTEXT / (statistics.median(times[20:]) / 1e3)
    return {
        "loss": mean_loss(model.eval(), tokens),
        "seconds": seconds,
        "tokens_per_second": speed,
    }


@torch.inference_mode()
def mean_loss(model, tokens: np.ndarray) -> float:
    """Return the mean nats per character over the whole part, counted as the validation of `llm train` does."""
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, CONTEXT):
        window = torch.from_numpy(tokens[start : start + CONTEXT + 1])
        logits, _ = model(window[None, :-1], window[None, 1:])
        total += F.cross_entropy(logits[0].double(), window[1:], reduction="sum").item()
        count += len(window) - 1
    return total / count


def run_ours(seed: int, threads: int, output: Path, precision: str) -> dict[str, float]:
    """Train with `llm train experiment=shakespeare`, and return the same metrics."""
    name = f"seed{seed}-{precision}"
    words = [
        *("experiment=shakespeare", f"seed={seed}", f"name={name}", "rerun=true"),
        *("hardware=cpu", f"hardware.precision={precision}", f"hardware.threads={threads}"),
        f"output_dir={output}",
    ]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "llm", "train", *words], capture_output=True, check=True)
    seconds = time.perf_counter() - start
    run = output / "pretraining" / name
    with (run / "metrics.csv").open(newline="") as file:
        speeds = [row["speed/tokens_per_second"] for row in csv.DictReader(file)]
    return {
        "loss": json.loads((run / "run.json").read_text())["metrics"]["val/loss"],
        "seconds": seconds,
        "tokens_per_second": statistics.median(float(speed) for speed in speeds if speed),
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Format a row per program: mean and range of the loss, medians of the rest."""
    lines = [
        "| | validation loss, whole part (mean, range) | wall time (s, median) | tokens/s (median) |",
        "|---|---|---|---|",
    ]
    for name, runs in results.items():
        losses = [run["loss"] for run in runs]
        seconds = statistics.median(run["seconds"] for run in runs)
        speed = statistics.median(run["tokens_per_second"] for run in runs)
        lines.append(
            f"| {name} | {statistics.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f}) "
            f"| {seconds:.0f} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("outputs/shakespeare-comparison"))
    arguments = parser.parse_args()

    prepare(arguments.nanogpt, text())
    results: dict[str, list[dict[str, float]]] = {
        "nanoGPT, float32": [],
        "llm, float32": [],
        "llm, bf16": [],
    }
    for seed in arguments.seeds:
        runs = [
            run_nanogpt(arguments.nanogpt, seed, arguments.threads),
            run_ours(seed, arguments.threads, arguments.output, "32"),
            run_ours(seed, arguments.threads, arguments.output, "bf16"),
        ]
        for name, run in zip(results, runs, strict=True):
            results[name].append(run)
            print(f"seed {seed}, {name}: {run}", file=sys.stderr, flush=True)
    print(table(results))
    print(
        f"\nSeeds {arguments.seeds}, torch {torch.__version__}, {arguments.threads} threads, ",
        end="",
    )
    print(f"Python {platform.python_version()}, {cpu()}.")


def cpu() -> str:
    """Return the name of the processor."""
    if Path("/proc/cpuinfo").is_file():
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    return platform.processor()


if __name__ == "__main__":
    main()
