"""Make the runs in this folder, which later versions must resume, evaluate and compare.

    python tests/cases/runs_of_format_2/make.py

It uses the installed version of the package. Run it only for a new `llm.runs.FORMAT`, in a folder of that name: runs
that are made again do not test compatibility with earlier versions.
"""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = "/runs"  # replaces the absolute path of this folder in the files
WORDS = "the a cat dog sat ran on under mat house and then it was very old".split()
CPU = ["hardware.accelerator=cpu", "hardware.threads=1"]
SMALL = [
    *("hardware=cpu", "hardware.precision=32", "hardware.threads=1", "optimizer=adamw"),
    *("data.batch_size=4", "trainer.val_every=1", "trainer.log_every=1", "trainer.val_batches=1"),
    *("callbacks.samples=null", "callbacks.picture=null"),
]
# Large steps, so that each one is visible in the metrics.
FAST = ["optimizer.lr=0.05", "schedule=constant", "schedule.warmup_steps=0"]
# A model of 3,500 parameters: with the state of the optimizer, a checkpoint has 70 kB.
MODEL = [
    *("model=gpt2", "size=nano", "size.num_layers=1", "size.dim=8", "size.context_length=32"),
    *("tokenizer=byte", "data=text", "data.path=text.txt"),
]
BASE = ["weights=run", "weights.path=outputs/pretraining/base"]
ADAPTER = [*BASE, "adapter=lora", "data=text", "data.path=text.txt"]
PAIRS = [*BASE, "task=dpo", "data=preference", "data.path=pairs.jsonl", "data/template=chatml"]
LINES = {
    "pretraining/base": ["name=base", *MODEL, *SMALL, *FAST],
    "pretraining/lora": ["name=lora", *ADAPTER, *SMALL, *FAST],
    "dpo/dpo": ["name=dpo", *PAIRS, "callbacks=dpo", *SMALL, *FAST],
}
SWEEP = ["-m", "name=sweep", "seed=1,2", *MODEL, *SMALL, "trainer.max_steps=1"]
STEPS = 2
# Files that resuming, evaluating and comparing do not read.
LEFT_OUT = ("previous.ckpt", "*.lock", "*.err", "*.log", "*.png")


def main() -> None:
    """Train in this folder from a shell, and save the metrics of using the runs."""
    shutil.rmtree(HERE / "outputs", ignore_errors=True)
    write_data(HERE)
    environment = os.environ | {"LLM_CACHE": str(HERE / "cache"), "OMP_NUM_THREADS": "1"}
    for words in (*([*line, f"trainer.max_steps={STEPS}"] for line in LINES.values()), SWEEP):
        line = [sys.executable, "-m", "llm", "train", *words]
        subprocess.run(line, cwd=HERE, env=environment, check=True)
    shutil.rmtree(HERE / "cache")
    keep_what_is_read(HERE / "outputs")
    with tempfile.TemporaryDirectory() as folder, chdir(copy_runs(Path(folder) / "runs")):
        os.environ["LLM_CACHE"] = f"{folder}/cache"
        found = json.dumps(use_runs(), indent=1)
    (HERE / "expected.json").write_text(f"{found}\n", "utf-8")


def write_data(folder: Path) -> None:
    """Write a text, and questions with a polite and a rude answer each."""
    draw = random.Random(0)
    text = "\n".join(" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(40))
    (folder / "text.txt").write_text(text, "utf-8")
    rows = [{"instruction": f"{word}?", "chosen": f"a {word}", "rejected": "no"} for word in WORDS]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")


def keep_what_is_read(outputs: Path) -> None:
    """Delete all files that no test reads, and replace the path of this folder in the others."""
    for file in (file for pattern in LEFT_OUT for file in outputs.rglob(pattern)):
        file.unlink()
    for folder in outputs.glob("pretraining/sweep,*/checkpoints"):
        shutil.rmtree(folder)
    for file in (*outputs.rglob("*.yaml"), *outputs.rglob("*.json")):
        file.write_text(file.read_text("utf-8").replace(str(HERE), ROOT), "utf-8")


def copy_runs(folder: Path) -> Path:
    """Copy the runs and their data to a folder, and return it."""
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for file in (*folder.rglob("*.yaml"), *folder.rglob("*.json")):
        file.write_text(file.read_text("utf-8").replace(ROOT, str(folder)), "utf-8")
    return folder


def run_line(*words: str) -> None:
    """Run `llm WORDS` in this process, and require exit status 0."""
    from llm.__main__ import main

    sys.argv = ["llm", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


def use_runs() -> dict[str, Any]:
    """Evaluate the runs, train them a step further and compare them, in the folder of a copy.

    Returns:
        The metrics of each run, to compare with those of the version that made it.
    """
    found = {}
    # Reversed, because the others start from the first run, before it is trained further.
    for name, words in reversed(LINES.items()):
        run = Path("outputs", name)
        run_line("evaluate", f"weights.path={run}", "part=validation", *CPU)
        evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))["metrics"]
        run_line("train", *words, f"trainer.max_steps={STEPS + 1}")
        found[name] = {"evaluation": evaluation, "metrics": read(run / "metrics.csv", "/loss")}
    run_line("train", *SWEEP)
    run_line("compare", "outputs/sweeps/sweep", "seeds=rows")
    found["sweep"] = read(Path("outputs/sweeps/sweep/table.csv"), "_loss")
    run_line("compare", "outputs/pretraining", "output=compared")
    found["pretraining"] = read(Path("compared/table.csv"), "_loss")
    return found


def read(file: Path, ending: str) -> list[dict[str, float]]:
    """Return the values of the columns of a table whose names have an ending."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [
        {name: float(value) for name, value in row.items() if name.endswith(ending) and value}
        for row in rows
    ]


if __name__ == "__main__":
    main()
