"""Logistic regression over a bag of words, on the splits of `llm train`, compared with runs.

    python experiments/classification_from_scratch/baseline.py FILE.csv [TOKENS [RUN ...]]

The regression and the runs read the first TOKENS tokens of a text, as `tokenizer=word` counts them. The runs are those
with the seeds 0, 1, 2, … in this order; their folders contain predictions.csv.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llm.data.examples.collation import Padding
from llm.data.examples.labelled import LabelledDataModule
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.word import PATTERN

VECTORS: dict[str, Callable] = {
    "counts": CountVectorizer,
    "presence-IDF": lambda: TfidfVectorizer(binary=True),
    "TF-IDF": lambda: TfidfVectorizer(sublinear_tf=True),
}
Correct = dict[str, np.ndarray]


def beginning(text: str, tokens: int | None) -> str:
    """Return the first `tokens` tokens of a text, or all of it."""
    spans = [match.end() for match in PATTERN.finditer(text)]
    return text if tokens is None or len(spans) <= tokens else text[: spans[tokens - 1]]


def correct_predictions(path: str, seed: int, tokens: int | None) -> tuple[list[str], Correct]:
    """Return the rows of the test part and, for each kind of vector, which of them are classified correctly.

    Args:
        path: a CSV file with the columns `text` and `label`.
        seed: seed of the split.
        tokens: maximum number of tokens of a text; None reads all.
    """
    data = LabelledDataModule(
        path=path, tokenizer=ByteTokenizer(), context_length=64, collation=Padding(), seed=seed
    )
    data.prepare_data()
    texts = {part: [beginning(e.text, tokens) for e in own] for part, own in data.raw.items()}
    labels = {part: np.array([e.label for e in own]) for part, own in data.raw.items()}
    correct = {}
    for name, make in VECTORS.items():
        vectors = make()
        model = LogisticRegression(max_iter=2000).fit(
            vectors.fit_transform(texts["train"]), labels["train"]
        )
        correct[name] = model.predict(vectors.transform(texts["test"])) == labels["test"]
    return [example.where for example in data.raw["test"]], correct


def correct_in_run(run: str, rows: list[str]) -> np.ndarray:
    """Return which rows of the test part a run classified correctly.

    Raises:
        ValueError: the run was tested on other rows.
    """
    with (Path(run) / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        answers = list(csv.DictReader(stream))
    if [answer["row"] for answer in answers] != rows:
        raise ValueError(f"{run}: tested on other rows; train it with data.split_seed=null")
    return np.array([answer["label"] == answer["predicted"] for answer in answers])


def differences(per_seed: list[Correct], name: str) -> str:
    """Format the mean difference in accuracy between the runs and the bag of words, with its 95 % interval."""
    paired = [correct["run"].astype(float) - correct[name] for correct in per_seed]
    mean = np.mean([one.mean() for one in paired])
    texts = 1.96 * np.sqrt(sum(one.var(ddof=1) / len(one) for one in paired)) / len(paired)
    return f"run - {name}: {100 * mean:+.1f} points, +- {100 * texts:.1f} (95 %, texts paired)"


if __name__ == "__main__":
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else None
    runs = sys.argv[3:]
    found = []
    for seed in range(len(runs) or 3):
        rows, correct = correct_predictions(sys.argv[1], seed, limit)
        if runs:
            correct["run"] = correct_in_run(runs[seed], rows)
        found.append(correct)
        print(seed, {name: f"{one.mean():.1%}" for name, one in correct.items()})
    if runs:
        print(*(differences(found, name) for name in VECTORS), sep="\n")
