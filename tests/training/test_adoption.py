"""Runs that begin from weights have the architecture of the weights, also in their records."""

import csv
import json

import forked
import pytest
from made_runs import make

from llm.comparison.result import Result

STEPS = (
    *("trainer.max_steps=1", "trainer.val_every=1", "schedule.warmup_steps=0", "hardware=cpu"),
    *("hardware.precision=32", "hardware.threads=1", "data=text", "data.batch_size=2"),
    *("callbacks.samples=null", "callbacks.picture=null"),
)


@pytest.fixture
def train(text, tmp_path, monkeypatch):
    """Run `llm train` in a temporary folder, and return the folder of the run."""
    monkeypatch.chdir(tmp_path)

    def train(name, *words):
        done = forked.run(["train", *STEPS, f"data.path={text}", f"name={name}", *words])
        assert done.returncode == 0, done.stderr
        return tmp_path / "outputs" / "pretraining" / name

    return train


def test_finetunes_are_compared_with_the_options_of_their_base(train, tmp_path):
    base = train(
        "base",
        "model=gemma2",
        "size=nano",
        "size.dim=32",
        "size.context_length=16",
        "tokenizer=byte",
    )
    lora = train("lora", "weights=run", f"weights.path={base}", "adapter=lora")
    further = train("further", "weights=run", f"weights.path={lora}")
    for run in (lora, further):
        record = json.loads((run / "run.json").read_text())
        chosen = {"model": "gemma2", "model/layers": "local_global_2", "tokenizer": "byte"}
        assert chosen.items() <= record["choices"].items()
        assert record["choices"]["size"] == "nano"
        assert record["adopted"]["size.context_length"] == "16"
    other = train("other", "model=gpt2", "size=nano", "size.context_length=32", "tokenizer=byte")
    out = tmp_path / "out"
    done = forked.run(["compare", *map(str, (base, lora, further, other)), f"output={out}"])
    assert done.returncode == 0, done.stderr
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = sorted((row["model"], row["size.context_length"], row["adapter"]) for row in rows)
    gemma = [("gemma2", "16", adapter) for adapter in ("lora", "none", "none")]
    assert shown == [*gemma, ("gpt2", "32", "none")]


def test_target_of_an_adapter_that_the_family_lacks_is_refused(train, text):
    base = train(
        "base",
        "model=gpt_neox",
        "size=nano",
        "size.dim=32",
        "size.context_length=16",
        "tokenizer=byte",
    )
    words = [*STEPS, f"data.path={text}", "weights=run", f"weights.path={base}", "adapter=lora"]
    done = forked.run(["train", *words, "adapter.targets=[query,gate]", "name=other"])
    assert done.returncode == 2
    assert done.stderr.startswith("adapter.targets: gate matches no frozen matrix; there are ")


def test_unrecorded_options_of_weights_are_unknown(tmp_path):
    """A job that has not started, a run of an earlier version, or a run from a published folder."""
    choices = {"weights": "run", "model": "gpt", "model/norm": "rms", "size": "mini"}
    run = make(tmp_path / "a", settings={"adapter": "lora"}, choices=choices)
    assert "model" not in Result(run).settings
    assert "model/norm" not in Result(run).settings
    assert Result(run).settings["adapter"] == "lora"
