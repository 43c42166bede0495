"""Six optimizers, each with four or five learning rates, then its best rate with three other seeds.

    python experiments/optimizers/study.py             # twelve sweeps, the table, the picture
    python experiments/optimizers/study.py --table     # the table and picture of the finished runs

Each optimizer is a saved sweep in `conf/sweep`. One seed selects the learning rate by its best validation loss, and
other seeds measure it: on the selecting seed, the selected rate would look better than it is.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from llm.comparison.interval import mean_interval
from llm.comparison.result import Result
from llm.runs import list_runs

HERE = Path(__file__).parent
OPTIMIZERS = ("muon", "adamw", "adam", "rmsprop", "adagrad", "sgd")
SELECTING_SEED, MEASURING_SEEDS = 1, (2, 3, 4)
# The palette of Okabe and Ito, and markers, for readers who cannot distinguish the colours.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vX"

Losses = dict[str, dict[int, Result]]  # by learning rate (as typed) and seed


def train(optimizer: str, output: Path, words: list[str]) -> None:
    """Run one sweep; finished runs are skipped."""
    command = [
        *("llm", "train", "--config-dir", str(HERE / "conf"), f"sweep={optimizer}"),
        *(f"output_dir={output}", *words),
    ]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def results(output: Path) -> dict[str, Losses]:
    """Return the finished runs of each optimizer."""
    found: dict[str, Losses] = {name: {} for name in OPTIMIZERS}
    for run in list_runs(output):
        if run.status == "done":
            given = run.record["overrides"]
            rate = given["optimizer.lr"]
            found[given["sweep"]].setdefault(rate, {})[run.record["seed"]] = Result(run)
    return found


def best_rate(losses: Losses) -> str:
    """Return the rate with the lowest validation loss for the selecting seed."""
    return min(losses, key=lambda rate: losses[rate][SELECTING_SEED].metrics["best_loss"])


def table(found: dict[str, Losses]) -> str:
    """Format a row per optimizer, the best first."""
    rows = []
    for name, losses in found.items():
        rate = best_rate(losses)
        own = [losses[rate][seed] for seed in MEASURING_SEEDS]
        loss = mean_interval([each.metrics["best_loss"] for each in own])
        rates = sorted(losses, key=float)
        first = ", ".join(f"{losses[r][SELECTING_SEED].metrics['best_loss']:.3f}" for r in rates)
        edge = " (at the edge)" if rate in (rates[0], rates[-1]) else ""
        rows.append(
            (
                loss.mean,
                f"| {name} | {', '.join(rates)} | {first} | {rate}{edge} | {loss.mean:.3f} ± {loss.margin:.3f} |",
            )
        )
    head = (
        "| optimizer | rates | validation loss at each, seed 1 | best rate | loss, seeds 2 to 4 |"
    )
    return "\n".join([head, "|---|---|---|---|---|", *(row for _, row in sorted(rows))])


def draw(found: dict[str, Losses], picture: Path) -> None:
    """Plot validation loss against learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, losses), color, marker in zip(found.items(), COLORS, MARKERS, strict=True):
        rates = sorted(losses, key=float)
        values = [losses[rate][SELECTING_SEED].metrics["best_loss"] for rate in rates]
        axes.plot([*map(float, rates)], values, color=color, marker=marker, label=name)
    axes.set(
        xscale="log", xlabel="learning rate", ylabel="best validation loss (nats per character)"
    )
    axes.set_title(
        "Six optimizers, tiny Shakespeare, GPT-2 of 0.1 M parameters, 500 steps, one seed"
    )
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/optimizers_study"))
    parser.add_argument("--picture", type=Path, default=HERE / "rates.png")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("words", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    if not args.table:
        for name in OPTIMIZERS:
            train(name, args.output, [f"seed={SELECTING_SEED}", *args.words])
        for name, losses in results(args.output).items():
            seeds = ",".join(map(str, MEASURING_SEEDS))
            rate = f"optimizer.lr={best_rate(losses)}"
            train(name, args.output, [rate, f"seed={seeds}", *args.words])
    found = results(args.output)
    print(table(found))
    draw(found, args.picture)


if __name__ == "__main__":
    main()
