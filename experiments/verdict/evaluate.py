"""The loss of a finished run on the training and the validation part, without dropout, as printed in the book.

    llm train experiment=verdict hardware.precision=32
    python experiments/verdict/evaluate.py outputs/pretraining/verdict

The book prints means over the first five batches of each part; the training part has nine batches, the validation part
one. This script prints means over all windows of each part, with the weights after the last step.
"""

import argparse
import json
from pathlib import Path

import torch

from llm.config.build import build
from llm.data.corpora.token_file import TokenFile
from llm.data.corpora.windows import ValidationWindows
from llm.data.sampler import ValidationSampler
from llm.evaluation.perplexity import Perplexity
from llm.weights.run import RunWeights


@torch.inference_mode()
def mean_loss(model: torch.nn.Module, file: TokenFile, context_length: int) -> float:
    """Return the mean cross-entropy over every window of a token file, in nats."""
    windows, metric = ValidationWindows(file, context_length), Perplexity()
    for numbers in ValidationSampler(len(windows), 2):
        batch = windows[numbers]
        metric.update(model(batch["tokens"]), batch["targets"])
    return metric.compute()["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    path = parser.parse_args().run
    weights = RunWeights(str(path), checkpoint="last")
    data = build(weights.config.data)
    data.prepare_data()
    data.setup("fit")
    model = weights.model()
    parts = {"training": data._training.file, "validation": data._validation.file}
    losses = {name: mean_loss(model, file, data.context_length) for name, file in parts.items()}
    record = json.loads((path / "run.json").read_text())
    print("| | training loss | validation loss |\n|---|---|---|")
    print(f"| this run | {losses['training']:.3f} | {losses['validation']:.3f} |")
    print("| the book (published) | 0.391 | 6.452 |")
    print(
        f"\nSeed {record['seed']}, {record['steps']} steps, {record['versions']}, {record['machine']}."
    )


if __name__ == "__main__":
    main()
