"""Eight families of language models with equal active parameters and tokens: loss at three lengths of the context.

    python experiments/families/study.py --select    # the trials, whose best settings go to settings.yaml
    python experiments/families/study.py             # the chosen settings with three seeds, and the table
    python experiments/families/study.py --table     # the table of the finished runs
    python experiments/families/study.py --families llama lstm  # only these, so that two processes can share

One seed selects learning rate and dropout of each family by the validation loss, other seeds measure them. All families
have the same four trials. Finished runs are skipped.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from llm.comparison.interval import mean_interval
from llm.comparison.result import Result
from llm.runs import list_runs

HERE = Path(__file__).parent
FAMILIES = (
    *("gpt2", "llama", "qwen3", "gemma3_short", "moe", "gated_deltanet_hybrid"),
    *("mamba2_small_state", "lstm"),
)
SELECTING_SEED, MEASURING_SEEDS = 1, (2, 3, 4)
DROPOUT = 0.1  # of the fourth trial, at the best rate of three
CONTEXT, CONTEXTS = 512, (128, 512, 4096)
TOKENS, LEAST_TOKENS_PER_STEP = 1_024_000, 1024
# What a trial sets besides the sweep: its settings and the widths that match its size to that of the first family.
SETTINGS_HEAD = "# Written by `python experiments/families/study.py --select`; bits per byte of the trials' seed.\n"
SETTINGS = ("model", "optimizer.lr", "model.dropout", "size.dim", "model.feed_forward.hidden_dim")


class Trained:
    """The finished runs of one family.

    Args:
        name: the family, an option of `model`.
        output: folder of the runs.
    """

    def __init__(self, name: str, output: Path) -> None:
        runs = [run for run in list_runs(output) if run.status == "done"]
        self.name = name
        self.runs = [run for run in runs if run.record["overrides"]["model"] == name]

    def trials(self) -> list[Result]:
        """Return the runs of the selecting seed, the best first."""
        trials = [Result(run) for run in self.runs if run.record["seed"] == SELECTING_SEED]
        return sorted(trials, key=bits_per_byte)

    def selection(self) -> dict[str, Any]:
        """Return the size, the trials' bits per byte, the best first, and the overrides of the best."""
        trials = self.trials()
        best = trials[0].run.record
        return {
            "parameters": best["parameters"],
            "trials": {label(trial): round(bits_per_byte(trial), 3) for trial in trials},
            "settings": {
                key: best["overrides"][key] for key in SETTINGS if key in best["overrides"]
            },
        }

    def measured(self, context: int) -> list[Result]:
        """Return the runs of the measuring seeds with this context."""
        length = str(context) if context != CONTEXT else None
        return [
            Result(run)
            for run in self.runs
            if run.record["seed"] in MEASURING_SEEDS
            and _text(run.record["overrides"].get("size.context_length")) == length
        ]


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def bits_per_byte(result: Result) -> float:
    """Return the bits per byte of the whole validation part after the last step."""
    return result.metrics["bits_per_byte"]


def train(output: Path, *words: str) -> None:
    """Run one sweep; finished runs are skipped."""
    command = [
        *("llm", "train", "--config-dir", str(HERE / "conf"), "sweep=families"),
        *(f"output_dir={output}", *words),
    ]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def fixed(settings: dict[str, Any]) -> Iterator[str]:
    """Yield a family's settings as overrides of a sweep whose points have their sizes already."""
    yield "match=null"
    yield from (f"{key}={value}" for key, value in settings.items())


def select(families: list[str], output: Path, words: list[str]) -> dict[str, Any]:
    """Train the trials, and return what was selected for each family."""
    models = [FAMILIES[0], *(name for name in families if name != FAMILIES[0])]  # match the first
    train(output, f"model={','.join(models)}", f"seed={SELECTING_SEED}", *words)
    for name in families:
        settings = Trained(name, output).selection()["settings"] | {"model.dropout": DROPOUT}
        train(output, *fixed(settings), f"seed={SELECTING_SEED}", *words)
    return {name: Trained(name, output).selection() for name in families}


def measure(
    families: list[str],
    contexts: list[int],
    output: Path,
    words: list[str],
    selected: dict[str, Any],
) -> None:
    """Train the selected settings with three seeds at each length of the context."""
    seeds = f"seed={','.join(map(str, MEASURING_SEEDS))}"
    for context in contexts:
        length = () if context == CONTEXT else shape(context)
        for name in families:
            train(output, *fixed(selected[name]["settings"]), seeds, *length, *words)


def shape(context: int) -> list[str]:
    """Return the overrides of another context, with as many tokens in all and, if rows are short, in a step."""
    rows = max(1, LEAST_TOKENS_PER_STEP // context)
    steps = TOKENS // (rows * context)
    return [
        *(f"size.context_length={context}", f"data.batch_size={rows}"),
        *(f"trainer.max_steps={steps}", f"trainer.val_every={steps}"),
    ]


def table(output: Path, contexts: list[int], selected: dict[str, Any]) -> str:
    """Format a row for each family: its trials, and the bits per byte of the other seeds."""
    head = ["model", "parameters", "trials", *(f"{context:,}" for context in contexts)]
    lines = [f"| {' | '.join(head)} |", f"|---|---:|---|{'---:|' * len(contexts)}"]
    for name in FAMILIES:
        if name not in selected:
            continue
        found = selected[name]
        best = min(found["trials"], key=found["trials"].get)
        trials = {label: f"{loss:.3f}" for label, loss in found["trials"].items()}
        trials[best] = f"**{trials[best]}**"
        losses = [interval(Trained(name, output).measured(context)) for context in contexts]
        parameters = f"{found['parameters'] / 1000:.0f} k"
        listed = ", ".join(f"{label}: {trials[label]}" for label in sorted(trials))
        lines.append(f"| {' | '.join([f'`{name}`', parameters, listed, *losses])} |")
    return "\n".join(lines)


def label(trial: Result) -> str:
    """Return a trial's learning rate, and its dropout if it has some."""
    given = trial.run.record["overrides"]
    dropout = given.get("model.dropout")
    return f"{given['optimizer.lr']}{f' with dropout {dropout}' if dropout else ''}"


def interval(results: list[Result]) -> str:
    """Format mean and 95 % interval of the bits per byte."""
    if len(results) < 2:
        return "–"
    found = mean_interval([bits_per_byte(result) for result in results])
    return f"{found.mean:.3f} ± {found.margin:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/families_study"))
    parser.add_argument("--settings", type=Path, default=HERE / "settings.yaml")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--contexts", nargs="+", type=int, default=CONTEXTS)
    parser.add_argument(
        "--select", action="store_true", help="train the trials and write the settings"
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("words", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    selected = yaml.safe_load(args.settings.read_text()) if args.settings.exists() else {}
    families, contexts = list(args.families), list(args.contexts)
    if args.select:
        selected |= select(families, args.output, args.words)
        args.settings.write_text(SETTINGS_HEAD + yaml.safe_dump(selected, sort_keys=False))
        return
    if not args.table:
        measure(families, contexts, args.output, args.words, selected)
    print(table(args.output, contexts, selected))


if __name__ == "__main__":
    main()
