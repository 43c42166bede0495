"""Figures of an evaluation that several processes share: those of one process that sees everything."""

import json
import subprocess
import sys

import pytest

RANK = """
import json, sys
import torch
from torch import distributed
from llm.evaluation.classification_metrics import Probabilities, WeightedLoss, confusion, scores
from llm.evaluation.running_mean import Means
from llm.evaluation.perplexity import Perplexity

rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if size > 1:
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
draw = torch.Generator().manual_seed(0)
logits = torch.randn(9, 2, generator=draw)
labels = torch.randint(2, (9,), generator=draw)
labels[7:] = -100  # what fills the shares of processes up to equal numbers
rows = torch.arange(9)
tokens, targets = torch.randn(9, 3, 5, generator=draw), torch.randint(5, (9, 3), generator=draw)
targets[7:] = -100
figures, matrix, answers = scores(2), confusion(2), Probabilities()
loss, means, perplexity = WeightedLoss(), Means(("loss", "margin")), Perplexity()
# The first process has six rows and the second, where there is one, three: one text and two that ask nothing.
own = slice(None) if size == 1 else (slice(0, 6) if rank == 0 else slice(6, 9))
predicted = logits[own].argmax(-1)
figures.update(predicted, labels[own])
matrix.update(predicted, labels[own])
answers.update(rows[own], labels[own], logits[own])
asked = labels[own] != -100
loss.update((logits[own, 0] * asked).sum(), asked.sum())
means.update({"loss": logits[own, 0], "margin": logits[own, 1]}, asked)
perplexity.update(tokens[own], targets[own])
found_rows, probabilities = answers.compute()
order = found_rows.argsort()
found = {
    "scores": {name: value.item() for name, value in figures.compute().items()},
    "confusion": matrix.compute().tolist(),
    "rows": found_rows[order].tolist(),
    "probabilities": probabilities[order].tolist(),
    "loss": float(loss.compute()),
    "means": means.compute(),
    "perplexity": perplexity.compute(),
}
print(json.dumps(found))
"""


def run(size: int, meeting) -> list[dict]:
    """What each of so many processes comes to."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(size), str(meeting)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [json.loads(process.communicate(timeout=120)[0]) for process in processes]


@pytest.mark.slow
def test_two_processes_come_to_what_one_does(tmp_path):
    (alone,) = run(1, tmp_path / "alone")
    for found in run(2, tmp_path / "meeting"):
        assert found["rows"] == alone["rows"] == list(range(7))
        assert found["confusion"] == alone["confusion"]
        assert found["probabilities"] == alone["probabilities"]
        for name in ("scores", "means", "perplexity"):
            assert found[name] == pytest.approx(alone[name], rel=1e-6), name
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
