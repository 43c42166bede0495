"""Responses during finetuning: sampled at each validation, and saved and scored at the end."""

import json
from itertools import product

import pytest
from hydra import compose, initialize_config_module
from small_runs import run_command

from llm.callbacks.responses import Responses, ResponseSamples
from llm.runs import RESULTS

COLOURS = ["red", "blue"]
THINGS = ["hat", "cup", "dog"]
ROWS = [
    *(
        {"instruction": f"name a {c} {t}", "output": f"{c} {t}"}
        for c, t in product(COLOURS, THINGS)
    ),
    *({"instruction": "repeat", "input": c, "output": c * 2} for c in COLOURS),
    *(
        {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t}]}
        for t in THINGS
    ),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A nano model that has memorized 11 conversations, all of them also in its test part."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    words = [
        "experiment=instruct",
        "model=gpt",
        "size=nano",
        "tokenizer=byte",
        "data=instruction",
        f"data.path={path}",
        f"data.validation_path={path}",
        f"data.test_path={path}",
        "data/template=chatml",
        "data.batch_size=11",
        "hardware=cpu",
        "hardware.threads=1",
        "optimizer.lr=0.01",
        "schedule.warmup_steps=5",
        "trainer.max_epochs=null",
        "trainer.max_steps=100",
        "trainer.val_every=50",
        "callbacks.responses.max_tokens=20",
        "callbacks.response_samples.number=2",
    ]
    with initialize_config_module("llm.conf", version_base="1.3"):
        return run_command(compose("train", words), tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*are in the training part too")  # on purpose
def test_run_saves_scored_responses_and_samples_of_each_validation(run):
    rows = json.loads((run.path / RESULTS["responses"]).read_text("utf-8"))
    assert len(rows) == len(ROWS)
    named, repeated, said = rows[0], rows[6], rows[-1]
    assert (named["instruction"], named["input"]) == ("name a red hat", "")
    assert named["messages"] == [{"role": "user", "content": "name a red hat"}]
    assert (repeated["instruction"], repeated["input"]) == ("repeat", "red")
    assert repeated["messages"][-1]["content"] == "repeat\nred"
    assert said["instruction"] == "dog"
    assert [row["reference"] for row in rows[:6]] == [row["output"] for row in ROWS[:6]]

    right = sum(row["response"] == row["reference"] for row in rows)
    metrics = run.record["metrics"]
    assert right >= 10, "the 11 responses are memorized, with their end tokens"
    assert metrics["test/exact_match"] >= right / len(rows)
    assert metrics["test/rouge_l"] >= metrics["test/exact_match"]

    text = run.samples.read_text("utf-8")
    before, _, rest = text.partition("=== step 50\n")
    assert before.startswith("=== step 0\n<|im_start|>user\nname a red hat<|im_end|>\n")
    assert before.count("<|im_start|>assistant\n") == 2
    prompt = "<|im_start|>user\nname a red hat<|im_end|>\n<|im_start|>assistant\n"
    assert f"{prompt}red hat\n" not in before
    assert f"{prompt}red hat\n" in rest.partition("=== step 100\n")[2]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Responses(max_tokens=0), "max_tokens=0"),
        (lambda: Responses(batch_size=0), "batch_size=0"),
        (lambda: ResponseSamples(number=-1), "number=-1"),
    ],
)
def test_values_out_of_range_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
