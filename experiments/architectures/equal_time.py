"""Should the default model have SwiGLU, as Qwen3 has? Its ReLU² and SwiGLU with the same training time.

    python experiments/architectures/equal_time.py --measure    # the time of a step of each
    python experiments/architectures/equal_time.py --steps 1000 990    # the losses, with so many steps of each

Both are the default experiment with as many parameters. The steps that the first command prints take the same time, and
are what the second one trains. Finished runs are skipped.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import torch
from hydra import compose, initialize_config_module

from llm.comparison.interval import mean_interval
from llm.comparison.result import Result
from llm.config.build import build
from llm.runs import Run
from llm.training.setup import resolve_vocabulary

LAYERS = ("relu_squared", "swiglu")
STEPS = 1000  # of the default experiment


def train(output: Path, name: str, layer: str, *words: str) -> Result:
    """Train one run, and return its results."""
    command = [
        *(sys.executable, "-m", "llm", "train", f"model/feed_forward={layer}", f"name={name}"),
        *(f"output_dir={output}", "callbacks.samples=null", "callbacks.picture=null", *words),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return Result(Run(output / "pretraining" / name))


def training(layer: str, words: list[str]) -> Callable[[], None]:
    """Return a function that makes a step of the default experiment on random tokens."""
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        config = compose("train", overrides=[f"model/feed_forward={layer}", *words])
    vocabulary = config.tokenizer.vocab_size
    resolve_vocabulary(config, vocabulary)
    task = build(config.task)
    optimizer = task.make_optimizer(task.parameter_groups(task.model))
    rows = torch.randint(vocabulary, (config.data.batch_size, config.size.context_length + 1))
    batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:]}
    is_mixed = str(build(config.hardware).resolve().precision).startswith("bf16")

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            loss = task.step(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def relative_time(words: list[str], *, rounds: int) -> tuple[float, float]:
    """Return the time of a step of the second layer relative to the first, and half the range of its middle half.

    One step of each in turn, so that other work on the machine slows down both; the first ten rounds warm up.
    """
    steps = [training(layer, words) for layer in LAYERS]
    ratios = []
    for _ in range(rounds + 10):
        times = []
        for step in steps:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    low, middle, high = quantiles(ratios[10:])
    return middle, (high - low) / 2


def losses(output: Path, words: list[str], steps: list[int], *, seeds: int) -> list[list[float]]:
    """Return the bits per byte of the whole validation part, of each layer and seed."""
    found: list[list[float]] = [[], []]
    for seed in range(1, seeds + 1):
        for each, layer, number in zip(found, LAYERS, steps, strict=True):
            given = (f"trainer.max_steps={number}", f"seed={seed}", *words)
            each.append(train(output, f"{layer}_{seed}", layer, *given).metrics["bits_per_byte"])
    return found


def row(name: str, steps: object, values: list[float]) -> str:
    """Format mean, interval and each seed."""
    interval = mean_interval(values)
    margin = "" if interval.margin is None else f" ± {interval.margin:.4f}"
    return f"| {name} | {steps} | {interval.mean:.4f}{margin} | {', '.join(f'{v:.4f}' for v in values)} |"


def main() -> None:
    """Print the speeds, or the losses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/equal_time"))
    parser.add_argument("--measure", action="store_true", help="measure the speeds")
    parser.add_argument("--steps", type=int, nargs=2, default=(STEPS, STEPS))
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("words", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    if args.measure:
        ratio, spread = relative_time(args.words, rounds=args.rounds)
        print(
            f"a step of {LAYERS[1]} takes {ratio:.3f} ± {spread:.3f} times as long; with equal time:"
        )
        print("--steps", round(STEPS * min(1, ratio)), round(STEPS * min(1, 1 / ratio)))
        return
    found = losses(args.output, args.words, args.steps, seeds=args.seeds)
    print(
        f"| feed-forward layer | steps | bits per byte | seeds 1 to {args.seeds} |\n|---|---:|---|---|"
    )
    for layer, steps, values in zip(LAYERS, args.steps, found, strict=True):
        print(row(f"`{layer}`", steps, values))
    print(row("difference, seed by seed", "", [b - a for a, b in zip(*found, strict=True)]))


if __name__ == "__main__":
    main()
