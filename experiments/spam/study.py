"""Five ways to finetune one pretrained model on the SMS Spam Collection, compared with a bag of words.

    llm train                                                                    # the base, once
    python experiments/spam/study.py                                             # the sweep, then the table
    python experiments/spam/study.py --table                                     # the table of a finished sweep
    python experiments/spam/study.py --speed                                     # seconds for the same 100 steps

The script prints and runs one sweep. All methods read the same messages: the seed decides the split
(`data.split_seed=null`), and the logistic regression with this seed has the same training, validation and test part.
It chooses its C on the validation part.
"""

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import OmegaConf
from scipy import stats
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score

from llm.config.build import build
from llm.data.examples.labelled import LabelledDataModule

HERE = Path(__file__).parent
METHODS = ("all", "last_block", "head", "lora", "prefix")
SEEDS = (1, 2, 3)
SPAM = "spam"
BOOTSTRAPS = 10_000
DROPOUT = [f"model.{part}dropout=0.1" for part in ("", "attention.", "feed_forward.")]
STEPS = 100  # optimizer steps of each method with --speed


class Result(NamedTuple):
    """One trained classifier: its predictions on the test part, and its cost."""

    truth: np.ndarray
    predicted: np.ndarray
    validation: float
    seconds: float
    trained: int
    memory: float
    checkpoint: float

    @property
    def balanced_accuracy(self) -> float:
        return float(balanced_accuracy_score(self.truth, self.predicted))

    @property
    def f1(self) -> float:
        return float(f1_score(self.truth, self.predicted))


def train(base: Path, output: Path, words: list[str]) -> None:
    """Train each method with each seed in one sweep."""
    command = [
        *("llm", "train", "-m", "--config-dir", str(HERE / "conf"), "experiment=spam"),
        *("weights=run", f"weights.path={base}", f"+method={','.join(METHODS)}"),
        *(f"output_dir={output}", "data.split_seed=null", *DROPOUT, *words),
        "callbacks.checkpoints.monitor=val/loss",  # the selection rule of the committed table
    ]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def speed(base: Path, words: list[str]) -> dict[str, float]:
    """Return the seconds of each method for the same steps, one method after the other."""
    few = [f"trainer.max_steps={STEPS}", f"trainer.val_every={STEPS}", "trainer.val_batches=1"]
    with tempfile.TemporaryDirectory() as folder:
        train(base, Path(folder), ["seed=1", "data.test_fraction=0", *few, *words])
        records = {
            file.parent.name: file for file in Path(folder).glob("classification/*/run.json")
        }
        return {
            method: json.loads(file.read_text("utf-8"))["seconds"]
            for method in METHODS
            for name, file in records.items()
            if f"+method={method}," in name
        }


def finished_runs(folder: Path) -> dict[str, dict[int, Result]]:
    """Return the finished runs of the sweep, by method and seed."""
    results: dict[str, dict[int, Result]] = {method: {} for method in METHODS}
    for file in sorted(folder.glob("classification/*/run.json")):
        record, run = json.loads(file.read_text("utf-8")), file.parent
        config = OmegaConf.load(run / "config.yaml")
        named = [part for part in run.name.split(",") if part.startswith("+method=")]
        if record["status"] != "done" or not named:
            continue
        with (run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        results[named[0].removeprefix("+method=")][config.seed] = Result(
            np.array([row["label"] == SPAM for row in rows]),
            np.array([row["predicted"] == SPAM for row in rows]),
            best_validation(run),
            record["seconds"],
            record["trained_parameters"],
            record["peak_memory"] / 2**20,
            (run / "checkpoints" / "best.ckpt").stat().st_size / 2**20,
        )
    return results


def best_validation(run: Path) -> float:
    """Return the balanced accuracy on the validation part of the tested weights, those with the lowest loss."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val/loss")]
    best = min(rows, key=lambda row: float(row["val/loss"]))
    return float(best["val/balanced_accuracy"])


def bag_of_words(folder: Path, vectorizer: type[CountVectorizer]) -> dict[int, Result]:
    """Train a logistic regression per seed, with balanced class weights and C chosen on the validation part."""
    results = {}
    for config in (
        OmegaConf.load(file)
        for file in sorted(folder.glob("classification/*method=all*/config.yaml"))
    ):
        data: LabelledDataModule = build(config.data)
        data.prepare_data()
        texts = {part: [example.text for example in own] for part, own in data.raw.items()}
        labels = {part: np.array([e.label == SPAM for e in own]) for part, own in data.raw.items()}
        start = time.perf_counter()
        words = vectorizer()
        counts = words.fit_transform(texts["train"])
        scored = []
        for c in (0.1, 1, 10, 100):
            model = LogisticRegression(C=c, class_weight="balanced", max_iter=5000)
            model.fit(counts, labels["train"])
            found = model.predict(words.transform(texts["validation"]))
            scored.append((balanced_accuracy_score(labels["validation"], found), -c, model))
        validation, _, best = max(scored)
        seconds = time.perf_counter() - start
        predicted = best.predict(words.transform(texts["test"]))
        results[config.seed] = Result(
            labels["test"],
            predicted,
            float(validation),
            seconds,
            counts.shape[1] + 1,
            np.nan,
            np.nan,
        )
    return results


def difference(ours: dict[int, Result], theirs: dict[int, Result]) -> tuple[float, float, float]:
    """Return the mean paired difference of balanced accuracy with its 95 % bootstrap interval.

    Each bootstrap sample draws seeds and, for each seed, messages of its test part within each class.
    """
    random = np.random.default_rng(0)
    seeds = sorted(ours)
    draws = []
    for _ in range(BOOTSTRAPS):
        sampled = []
        for seed in random.choice(seeds, len(seeds)):
            truth = ours[seed].truth
            right = [each[seed].predicted == truth for each in (ours, theirs)]
            shares = []
            for of_class in (np.flatnonzero(truth), np.flatnonzero(~truth)):
                drawn = random.choice(of_class, len(of_class))
                shares.append(right[0][drawn].mean() - right[1][drawn].mean())
            sampled.append(np.mean(shares))
        draws.append(np.mean(sampled))
    mean = statistics.mean(ours[s].balanced_accuracy - theirs[s].balanced_accuracy for s in seeds)
    low, high = np.percentile(draws, [2.5, 97.5])
    return mean, float(low), float(high)


def interval(values: list[float]) -> str:
    """Format the mean and half of Student's 95 % interval, in percent."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * statistics.mean(values):.1f} ± {100 * half:.1f}"


def row(name: str, results: dict[int, Result]) -> str:
    """Format a row of the table."""
    own = [results[seed] for seed in sorted(results)]
    memory = statistics.mean(each.memory for each in own)
    checkpoint = statistics.mean(each.checkpoint for each in own)
    cells = [
        name,
        f"{own[0].trained:,}",
        f"{100 * statistics.mean(each.validation for each in own):.1f}",
        interval([each.balanced_accuracy for each in own]),
        ", ".join(f"{100 * each.balanced_accuracy:.1f}" for each in own),
        f"{100 * statistics.mean(each.f1 for each in own):.1f}",
        f"{statistics.mean(each.seconds for each in own):.0f}",
        "" if np.isnan(memory) else f"{memory:,.0f}",
        "" if np.isnan(checkpoint) else f"{checkpoint:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = """\
| | trained parameters | validation, % | test: balanced accuracy, % | by seed | F1, % | s | peak MiB | checkpoint MiB |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=Path("outputs/pretraining/python_docs"))
    parser.add_argument("--output", type=Path, default=Path("outputs/spam_study"))
    parser.add_argument(
        "--table", action="store_true", help="only print the table of a finished sweep"
    )
    parser.add_argument("--speed", action="store_true", help="only time some steps of each method")
    parser.add_argument("words", nargs="*", help="further overrides of every run")
    args = parser.parse_args()
    if args.speed:
        for method, seconds in speed(args.base, args.words).items():
            print(f"{method}: {seconds:.1f} s for {STEPS} steps")
        return
    if not args.table:
        train(args.base, args.output, [f"seed={','.join(map(str, SEEDS))}", *args.words])
    results = finished_runs(args.output)
    missing = [f"{name} seed={s}" for name, own in results.items() for s in SEEDS if s not in own]
    if missing:
        sys.exit(
            f"{args.output}: not finished: {', '.join(missing)}; run the same line without --table"
        )
    regressions = {
        "logistic regression, word counts": bag_of_words(args.output, CountVectorizer),
        "logistic regression, tf-idf": bag_of_words(args.output, TfidfVectorizer),
    }
    print(HEAD)
    for name, each in (results | regressions).items():
        print(row(name, each))
    best = max(
        results, key=lambda name: statistics.mean(r.validation for r in results[name].values())
    )
    print(
        f"\nBest on the validation part: {best}. Its balanced accuracy on the test part minus that of"
    )
    for name, each in regressions.items():
        mean, low, high = difference(results[best], each)
        print(
            f"- {name}: {100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
        )


if __name__ == "__main__":
    main()
