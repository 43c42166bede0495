"""Accuracy of logistic regression over a bag of words, on the split that `llm train` makes.

python experiments/classification_from_scratch/baseline.py FILE.csv [WORDS]
"""

import sys
from collections.abc import Callable

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llm.data.collation import Padding
from llm.data.labelled import LabelledDataModule
from llm.tokenizers.byte import ByteTokenizer

VECTORS: dict[str, Callable] = {
    "counts": CountVectorizer,
    "TF-IDF": lambda: TfidfVectorizer(sublinear_tf=True),
}


def accuracies(path: str, seed: int, words: int | None) -> dict[str, float]:
    """Accuracy on the test part by the kind of vector.

    Args:
        path: a CSV file with the columns `text` and `label`.
        seed: of the split.
        words: how many words of a text are read; None reads all.
    """
    data = LabelledDataModule(path, ByteTokenizer(), 64, Padding(), seed=seed, split_seed=None)
    data.prepare_data()
    texts = {
        part: [" ".join(e.text.split()[:words]) for e in own] for part, own in data.raw.items()
    }
    labels = {part: [example.label for example in own] for part, own in data.raw.items()}
    found = {}
    for name, make in VECTORS.items():
        vectors = make()
        model = LogisticRegression(max_iter=2000).fit(
            vectors.fit_transform(texts["train"]), labels["train"]
        )
        found[name] = float(model.score(vectors.transform(texts["test"]), labels["test"]))
    return found


if __name__ == "__main__":
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else None
    for seed in (0, 1, 2):
        print(
            seed, {name: f"{one:.1%}" for name, one in accuracies(sys.argv[1], seed, limit).items()}
        )
