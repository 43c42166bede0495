"""A tiny model learns classes, with correct metrics and predictions."""

import csv
import json
import random
from types import SimpleNamespace

import lightning
import pytest
import torch
import torch.nn.functional as F

from llm.callbacks.predictions import Predictions
from llm.data.examples.collation import Padding
from llm.data.examples.labelled import LabelledDataModule
from llm.models.classifier import Classifier
from llm.nn.ignore_index import IGNORE_INDEX
from llm.optim.groups import decay_matrices
from llm.tasks.classification import Classification
from llm.tokenizers.byte import ByteTokenizer

WORDS = {"animal": "dog cat horse cow".split(), "colour": "red blue green pink".split()}


@pytest.fixture
def rows(tmp_path):
    """Texts of random words, one of which determines the class; one class is four times as large as the other."""
    draw = random.Random(0)
    lines = []
    for n in range(300):
        label = "animal" if n % 5 else "colour"
        words = draw.choices("the a of it was then and so".split(), k=3)
        words.insert(draw.randrange(4), draw.choice(WORDS[label]))
        lines.append(json.dumps({"text": f"{' '.join(words)} {n}", "label": label}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def module(path, **settings):
    return LabelledDataModule(
        **{
            "path": path,
            "tokenizer": ByteTokenizer(),
            "context_length": 32,
            "collation": Padding(),
            "batch_size": 16,
            **settings,
        },
    )


@pytest.fixture
def make(build):
    def made(num_classes=2, lr=3e-3):
        torch.manual_seed(0)
        body = build("size.dim=32", vocab_size=257)
        return Classification(
            Classifier(body, num_classes),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr),
            schedule=lambda step, steps: 1.0,
            parameter_groups=decay_matrices,
        )

    return made


def fit(task, data, folder, steps):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[Predictions()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    return trainer


@pytest.fixture
def learned(make, rows, tmp_path):
    task, data = make(), module(rows, balance="weights")
    fit(task, data, tmp_path, steps=150)
    return task, data


def read(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_tiny_model_learns_the_classes_and_writes_its_predictions(learned, tmp_path):
    task, data = learned
    for part in ("val", "test"):
        assert task.metrics[f"{part}/balanced_accuracy"] > 0.95
        assert task.metrics[f"{part}/f1"] > 0.95
        assert task.metrics[f"{part}/loss"] < 0.3

    answers = read(tmp_path / "predictions.csv")
    assert [answer["row"] for answer in answers] == [e.where for e in data.raw["test"]]
    assert [answer["text"] for answer in answers] == [e.text for e in data.raw["test"]]
    right = [answer["label"] == answer["predicted"] for answer in answers]
    assert sum(right) / len(right) == pytest.approx(task.metrics["test/accuracy"])
    for answer in answers:
        odds = {name: float(answer[f"p({name})"]) for name in data.classes}
        assert sum(odds.values()) == pytest.approx(1)
        assert answer["predicted"] == max(odds, key=lambda name: odds[name])

    matrix = {row["label"]: row for row in read(tmp_path / "confusion.csv")}
    for label in data.classes:
        for predicted in data.classes:
            pairs = [(a["label"], a["predicted"]) for a in answers]
            assert int(matrix[label][predicted]) == pairs.count((label, predicted))
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_class_weights_balance_the_classes(make, rows):
    task, data = make(), module(rows, balance="weights")
    data.setup("fit")
    task.trainer = SimpleNamespace(datamodule=data)
    task.setup("fit")
    (batch,) = [b for b in data.val_dataloader() if len(b["labels"]) == 16][:1]
    logits = task.model(batch["tokens"], batch["attention_mask"])
    labels = batch["labels"]
    nats = F.cross_entropy(logits, labels, reduction="none")
    sizes = torch.tensor(
        [len([e for e in data.raw["train"] if e.label == c]) for c in data.classes]
    )
    weights = (1 / sizes)[labels]
    torch.testing.assert_close(task.step(batch), (nats * weights).sum() / weights.sum())
    assert task.class_weights.min() == 1
    assert "class_weights" not in task.state_dict()


def test_padding_rows_do_not_change_the_loss(make, rows):
    task, data = make(), module(rows)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    extra = {name: torch.cat([value, value[:3]]) for name, value in batch.items()}
    extra["labels"][-3:] = IGNORE_INDEX
    torch.testing.assert_close(task.step(extra), task.step(batch))
    assert task.weight(extra) == task.weight(batch) == len(batch["labels"])
    task.evaluate(batch)
    expected = task.results()
    task.evaluate(extra)
    assert task.results() == pytest.approx(expected)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}
    assert task.step(nothing) == 0
    assert task.weight(nothing) == 0


def test_results_cover_only_batches_since_the_last_call(make, rows):
    task, data = make(), module(rows)
    data.setup("fit")
    first, second = [batch for batch, _ in zip(data.val_dataloader(), range(2), strict=False)]
    task.evaluate(first)
    alone = task.results()
    task.evaluate(second)
    task.results()
    task.evaluate(first)
    assert task.results() == alone


def test_model_with_another_number_of_classes_is_refused(make, rows):
    data = module(rows)
    data.prepare_data()
    message = r"num_classes=3: the data have 2 classes \(animal, colour\)"
    with pytest.raises(ValueError, match=message):
        make(num_classes=3).check(data)
    make(num_classes=2).check(data)


@pytest.mark.parametrize("is_pretrained", [False, True])
def test_pretrained_weights_are_advised_only_to_a_run_without_them(make, rows, is_pretrained):
    task, data = make(), module(rows)
    data.prepare_data()
    task.trainer = SimpleNamespace(datamodule=data)
    assert task.warnings() == []
    task.counts, task.is_pretrained = torch.tensor([[6, 0], [4, 0]]), is_pretrained
    (line,) = task.warnings()
    assert line.startswith("all 10 texts are classified as animal; try another optimizer.lr")
    assert ("pretrained weights" in line) != is_pretrained
