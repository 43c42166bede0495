"""Preference pairs: the mask of the targets, the layout of a batch, and malformed rows."""

import json
from pathlib import Path

import llm.conf
import pytest
import torch
from omegaconf import OmegaConf

from llm.config.build import build
from llm.data.errors import DataError
from llm.data.examples.collation import Padding
from llm.data.examples.preference import PreferenceDataModule
from llm.data.examples.template import Template
from llm.tokenizers import char
from llm.tokenizers.byte import ByteTokenizer

TEMPLATE = Template(
    begin={"system": "", "user": "Q: ", "assistant": "A: "},
    end={"system": "", "user": "\n", "assistant": "<end>"},
    special_tokens=["<end>"],
    input_separator=" / ",
)
GOOD = {"instruction": "Two?", "chosen": "two", "rejected": "none of it"}


@pytest.fixture
def module(tmp_path):
    """Return a data module over some rows, after `setup`; a row that is a string is written unchanged."""

    def module(*rows, **settings):
        path = tmp_path / "pairs.jsonl"
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("\n".join(lines), "utf-8")
        settings = {"context_length": 64, "batch_size": 2, "collation": Padding(), **settings}
        settings = {"tokenizer": ByteTokenizer(), **settings}
        data = PreferenceDataModule(path=path, template=TEMPLATE, **settings)
        data.prepare_data()
        data.setup()
        return data

    return module


def numbered(count):
    return [{**GOOD, "instruction": f"{number}?"} for number in range(count)]


def asked(data, row):
    return data.tokenizer.decode([token for token in row.tolist() if token != -100])


def read(data, tokens, attention):
    return data.tokenizer.decode(tokens[attention].tolist())


def test_a_batch_is_the_chosen_rows_and_then_the_rejected(module):
    data = module(*numbered(20))
    batch = next(iter(data.train_dataloader()))
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(
        ("tokens", "targets", "attention_mask"), (4, batch["tokens"].shape[1])
    )
    for pair in range(2):
        chosen, rejected = (
            read(data, batch["tokens"][row], batch["attention_mask"][row])
            for row in (pair, pair + 2)
        )
        prompt = chosen.removesuffix("two")
        assert rejected == prompt + "none of it", "the same question"
        assert asked(data, batch["targets"][pair]) == "two<end>"
        assert asked(data, batch["targets"][pair + 2]) == "none of it<end>"
    follows = (batch["targets"][:, :-1] != -100) & batch["attention_mask"][:, 1:]
    assert torch.equal(batch["tokens"][:, 1:][follows], batch["targets"][:, :-1][follows])
    assert (batch["targets"][~batch["attention_mask"]] == -100).all()


def test_an_input_and_earlier_turns_are_prompt(module):
    turns = [("user", "One?"), ("assistant", "one"), ("user", "Two?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = [{**GOOD, "input": "2"}, {"messages": messages, "chosen": "two", "rejected": "one"}]
    data = module(*rows * 10, validation_fraction=0.1, test_fraction=0.0)
    batch = data.collate([data.encode(pair) for pair in data.raw["train"]])
    half = len(data.raw["train"])
    texts = {
        read(data, tokens, attention)
        for tokens, attention in zip(batch["tokens"], batch["attention_mask"], strict=True)
    }
    assert texts == {
        *("Q: Two? / 2\nA: two", "Q: Two? / 2\nA: none of it"),
        *("Q: One?\nA: one<end>Q: Two?\nA: two", "Q: One?\nA: one<end>Q: Two?\nA: one"),
    }
    assert {asked(data, row) for row in batch["targets"][:half]} == {"two<end>"}


def test_a_blank_input_is_none(module):
    data = module(*[{**GOOD, "input": " "}] * 20)
    assert TEMPLATE.render(data.raw["train"][0].prompt) == "Q: Two?\nA: "


def test_a_tokenizer_is_fitted_to_what_is_written(module):
    data = module(*numbered(20), {**GOOD, "chosen": "x<end>"}, tokenizer=char.train_char)
    assert data.encoded["train"]
    assert set("Q: \nA<>").issubset(data.tokenizer.characters), "the template's, a person's <end>"


def test_text_cannot_forge_the_end_of_a_response(module):
    data = module(*({**GOOD, "chosen": "two<end>Q: more?"} for _ in range(20)))
    row = data.encode(data.raw["train"][0])
    assert row["targets"].count(data.tokenizer.special_tokens["<end>"]) == 2  # one a response


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**GOOD, "chosen": " "}, "chosen is empty"),
        ({"instruction": "Two?", "chosen": "two"}, "rejected is missing"),
        ({**GOOD, "rejected": 2}, "rejected is int, not text"),
        ({"chosen": "two", "rejected": "one"}, "prompt is missing"),
        ({**GOOD, "messages": "Two?"}, "a list of objects with role and content is needed"),
        (
            {**GOOD, "messages": [{"role": "assistant", "content": "two"}]},
            "begins with the assistant",
        ),
        (
            {
                **GOOD,
                "messages": [
                    {"role": "user", "content": "Two?"},
                    {"role": "assistant", "content": "two"},
                ],
            },
            "there is nothing to respond to",
        ),
        ("{", "not JSON"),
        ({**GOOD, "rejected": "none " * 20}, "the prompt and the rejected response have"),
    ],
)
def test_a_malformed_row_is_named_or_left_out(module, row, problem):
    rows = [*numbered(10), row, *numbered(10)]
    settings = {"validation_fraction": 0.1, "test_fraction": 0.0}
    with pytest.raises(DataError, match=rf"(?s)malformed=skip.*line 11: .*{problem}"):
        module(*rows, **settings)
    with pytest.warns(UserWarning, match="1 left out"):
        data = module(*rows, malformed="skip", **settings)
    assert sum(len(part) for part in data.raw.values()) == 20


def test_equal_responses_prefer_nothing(module):
    data = module(*numbered(20), {**GOOD, "rejected": "two"})
    assert sum(len(part) for part in data.raw.values()) == 20
    assert "pairs of equal responses left out: 1" in data.describe()


def test_what_decides_the_pairs_is_in_the_fingerprint(module):
    rows = numbered(20)
    first = module(*rows).fingerprint
    assert module(*rows, batch_size=4).fingerprint == first
    assert module(*rows, seed=1).fingerprint != first
    assert module(*rows, test_fraction=0.2).fingerprint != first
    assert module(*rows[1:], rows[0]).fingerprint != first


def test_too_few_pairs_and_fractions_beyond_the_whole_are_named(module):
    with pytest.raises(DataError, match="no preference pairs are left for the validation part"):
        module(*numbered(2))
    with pytest.raises(ValueError, match="fraction"):
        module(*numbered(9), validation_fraction=0.5, test_fraction=0.5)


def test_the_published_pairs(shared_data, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(shared_data))
    node = OmegaConf.load(Path(llm.conf.__file__).parent / "data/preference_1100.yaml")
    data = PreferenceDataModule(
        path=build(node.path),
        tokenizer=ByteTokenizer(),
        context_length=512,
        template=TEMPLATE,
        collation=Padding(),
        ignored=node.ignored,
    )
    data.prepare_data()
    assert data.unused == {}
    assert [len(data.raw[part]) for part in ("train", "validation", "test")] == [930, 55, 109]
    assert "pairs of equal responses left out: 6" in data.describe()
