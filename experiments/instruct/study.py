"""Instruction finetuning of a small model, then DPO: metrics and responses before and after.

    llm train                                                      # the base, once
    python experiments/instruct/study.py                           # instruction finetuning, DPO, the tables
    python experiments/instruct/study.py --tables                  # the tables of finished runs

Runs `llm train experiment=instruct` on 85 % of the 1,100 entries and, from its weights, `llm train experiment=prefer`
on 85 % of the 1,100 preference pairs. Prints Markdown.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from llm.callbacks.responses import generate_responses
from llm.config.build import build
from llm.data.examples.instruction import InstructionDataModule
from llm.evaluation.rouge import rouge_l
from llm.generation.generation_settings import GenerationSettings
from llm.runs import Run
from llm.weights.run import RunWeights

EXAMPLES = 5
COLUMNS = {
    "instruct": ("val/loss", "val/perplexity"),
    "prefer": (
        "val/loss",
        "val/accuracy",
        "val/margin",
        "val/chosen_reward",
        "val/rejected_reward",
    ),
}


def train(experiment: str, base: Path, output: Path, words: list[str]) -> None:
    """Print and run one finetuning command."""
    command = [
        *("llm", "train", f"experiment={experiment}", f"name={experiment}", "weights=run"),
        *(f"weights.path={base}", f"output_dir={output}", *words),
    ]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def curve(run: Run, columns: tuple[str, ...]) -> str:
    """Format the metrics of each validation as a table."""
    with run.metrics.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/loss")]
    lines = ["| step | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [f"{float(row[name]):.3f}" if row.get(name) else "" for name in columns]
        lines.append("| " + " | ".join([row["step"], *cells]) + " |")
    return "\n".join(lines)


def test_metrics(run: Run) -> str:
    """Format the metrics of the test part in one line."""
    metrics = {
        k.removeprefix("test/"): v
        for k, v in run.record["metrics"].items()
        if k.startswith("test/")
    }
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def before_and_after(weights: RunWeights) -> str:
    """Format responses to the same instructions of the test part, before finetuning and with the best weights."""
    data: InstructionDataModule = build(weights.config.data, tokenizer=weights.tokenizer())
    data.setup("fit")
    conversations = data.raw["test"]
    after = json.loads((weights.run.path / "responses.json").read_text("utf-8"))
    model = build(weights.config.task.model)
    base = weights.base_weights(weights.config)
    assert base is not None
    base.load(model)
    settings = GenerationSettings(max_tokens=40)
    before = generate_responses(data, conversations, model=model.eval(), settings=settings)
    score = sum(rouge_l(b, c.reference) for b, c in zip(before, conversations, strict=True)) / len(
        before
    )
    lines = [f"ROUGE-L before finetuning, on the same instructions: {score:.3f}\n"]
    lines += ["| question | before | after | reference |", "|---|---|---|---|"]
    for conversation, old, row in list(zip(conversations, before, after, strict=True))[:EXAMPLES]:
        question = " / ".join(filter(None, (conversation.instruction, conversation.context)))
        lines.append(
            "| "
            + " | ".join(map(cell, (question, old, row["response"], conversation.reference)))
            + " |"
        )
    return "\n".join(lines)


def cell(text: str) -> str:
    """Shorten and escape a text for a cell of a Markdown table."""
    short = " ".join(text.split())
    short = short if len(short) <= 160 else short[:159] + "…"
    return short.replace("|", "\\|").replace("<", "&lt;") or "(nothing)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=Path("outputs/pretraining/python_docs"))
    parser.add_argument("--output", type=Path, default=Path("outputs/instruct_study"))
    parser.add_argument(
        "--tables", action="store_true", help="only print the tables of finished runs"
    )
    parser.add_argument("words", nargs="*", help="further overrides of both runs")
    args = parser.parse_args()
    instruct, prefer = args.output / "sft/instruct", args.output / "dpo/prefer"
    if not args.tables:
        train("instruct", args.base, args.output, args.words)
        train("prefer", instruct, args.output, args.words)
    console = Console(width=10_000, highlight=False, markup=False)
    for name, folder in (("instruct", instruct), ("prefer", prefer)):
        run = Run(folder)
        console.print(
            f"\n## {name}\n\n{curve(run, COLUMNS[name])}\n\nTest part: {test_metrics(run)}"
        )
    console.print(f"\n## before and after\n\n{before_and_after(RunWeights(str(instruct)))}")


if __name__ == "__main__":
    main()
