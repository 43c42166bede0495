"""Instruction data: three forms of rows, the mask of the targets, and malformed rows."""

import json
import re

import pytest

from llm.data.data_fingerprint import digest
from llm.data.download import Download
from llm.data.errors import DataError
from llm.data.examples.collation import Packing, Padding
from llm.data.examples.instruction import InstructionDataModule
from llm.data.examples.template import Template
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tokenizers import char
from llm.tokenizers.byte import ByteTokenizer

TEMPLATE = Template(
    begin={"system": "S:", "user": "U:", "assistant": "A:"},
    end={"system": "", "user": "", "assistant": "<end>"},
    separator="|",
    special_tokens=["<end>"],
    input_separator="/",
)
GOOD = {"instruction": "say", "input": "x", "output": "yes"}
TALK = [
    {"role": "system", "content": "be"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


@pytest.fixture
def module(tmp_path):
    """module(rows, …): return a data module over a file of these rows, after `setup`."""

    def module(rows, setup=True, **settings):
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines))
        chosen = {
            "path": path,
            "tokenizer": ByteTokenizer(),
            "context_length": 64,
            "template": TEMPLATE,
            "collation": Padding(),
        }
        data = InstructionDataModule(**chosen | settings)
        if setup:
            data.setup()
        return data

    return module


def answers(data, example):
    """Return the text of the targets of an example."""
    asked = [token for token in data.encode(example)["targets"] if token != IGNORE_INDEX]
    return data.tokenizer.decode(asked)


@pytest.mark.parametrize(
    ("row", "text", "asked"),
    [
        (GOOD, "U:say/x|A:yes<end>", "yes<end>"),
        ({"instruction": "say", "output": "no"}, "U:say|A:no<end>", "no<end>"),
        ({**GOOD, "input": ""}, "U:say|A:yes<end>", "yes<end>"),
        ({**GOOD, "input": " \n"}, "U:say|A:yes<end>", "yes<end>"),
        (
            {"messages": [{"role": "system", "content": " "}, *TALK[1:3]]},
            "U:one|A:two<end>",
            "two<end>",
        ),
        ({"messages": TALK}, "S:be|U:one|A:two<end>|U:three|A:four<end>", "two<end>four<end>"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "ho"},
                ]
            },
            "U:hi|A:ho<end>",
            "ho<end>",
        ),
    ],
)
def test_rows_of_every_shape_become_conversations(module, row, text, asked):
    data = module([row] * 20)
    example = data.raw["train"][0]
    assert TEMPLATE.render(example.messages) == text
    assert answers(data, example) == asked
    tokens = data.encode(example)["tokens"]
    assert data.tokenizer.decode(tokens) == text.removesuffix("<end>")
    assert example.reference == example.messages[-1].content


def test_targets_are_the_tokens_one_place_further_on(module):
    data = module([GOOD] * 20, loss_on="all")
    row = data.encode(data.raw["train"][0])
    whole, _ = TEMPLATE.encode(data.raw["train"][0].messages, data.tokenizer)
    assert row == {"tokens": whole[:-1], "targets": whole[1:]}
    alone = module([GOOD] * 20).encode(data.raw["train"][0])
    assert alone["targets"] == [
        target if place >= len("U:say/x|A:") - 1 else IGNORE_INDEX
        for place, target in enumerate(whole[1:])
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"instruction": "say"}, "output is missing; there is instruction"),
        ({**GOOD, "output": " "}, "output is empty"),
        ({**GOOD, "instruction": None}, "instruction is NoneType, not text"),
        ({**GOOD, "input": ["x"]}, "input is list, not text"),
        ("{not json", "not JSON"),
        ("[1]", "list is not a JSON object"),
        ({"messages": "hello"}, "a list of objects with role and content"),
        ({"messages": TALK[:4]}, "the last message is not the assistant's"),
        ({"messages": [*TALK[:2], TALK[1]]}, "after the user comes the user"),
        ({"messages": [TALK[1], {"role": "bot", "content": "x"}]}, "'bot' is not one of"),
        ({"messages": [TALK[1], {"role": "assistant"}]}, "content is missing"),
        ({"messages": []}, "no message"),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "begins with the assistant"),
        ({**GOOD, "output": "y" * 80}, r"prompt and response have 10 \+ 81 tokens"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line_or_left_out(module, row, problem):
    rows = [*[GOOD] * 20, row, *[GOOD] * 20]
    with pytest.raises(DataError) as caught:
        module(rows)
    lines = "\n".join(caught.value.problems)
    assert "rows.jsonl, line 21: " in lines
    assert re.search(problem, lines)
    assert "data.malformed=skip" in lines
    with pytest.warns(UserWarning, match="1 left out"):
        data = module(rows, malformed="skip")
    assert sum(len(part) for part in data.raw.values()) == 40
    assert sum(len(part) for part in data.encoded.values()) == 40


def test_the_split_is_seeded_in_proportion_and_covers_everything(module):
    rows = [{"instruction": f"say {n}", "output": str(n)} for n in range(100)]
    parts = module(rows).raw
    assert {part: len(examples) for part, examples in parts.items()} == {
        "train": 85,
        "validation": 5,
        "test": 10,
    }
    assert sorted(int(e.reference) for part in parts.values() for e in part) == list(range(100))
    assert module(rows).raw == parts
    assert module(rows, seed=1).raw != parts


def test_parts_may_have_files_of_their_own(module, tmp_path):
    for part in ("validation", "test"):
        (tmp_path / f"{part}.json").write_text(json.dumps([{**GOOD, "output": part}] * 3))
    data = module(
        [GOOD] * 7, validation_path=tmp_path / "validation.json", test_path=tmp_path / "test.json"
    )
    assert {part: len(examples) for part, examples in data.raw.items()} == {
        "train": 7,
        "validation": 3,
        "test": 3,
    }
    assert data.raw["test"][0].reference == "test"


def test_a_file_too_small_to_validate_with_is_refused(module):
    with pytest.raises(DataError, match="no conversations are left for the validation part"):
        module([GOOD] * 3)


def test_every_example_is_in_an_epoch_once_packed_or_not(module):
    rows = [{"instruction": f"say {n}", "output": str(n)} for n in range(100)]
    for collation in (Padding(), Packing()):
        data = module(rows, collation=collation, batch_size=1)
        loader = iter(data.train_dataloader())
        asked = []
        for _ in range(data.batches_per_epoch):
            targets = next(loader)["targets"]
            asked += targets[targets != IGNORE_INDEX].tolist()
        expected = "".join(e.reference + "<end>" for e in data.raw["train"])
        assert sorted(data.tokenizer.decode(asked).split("<end>")) == sorted(
            expected.split("<end>")
        )


def test_a_tokenizer_is_trained_on_the_rendered_text_with_special_tokens(module):
    data = module([GOOD] * 20, tokenizer=char.train_char)
    assert set(data.tokenizer.special_tokens) >= {"<end>"}
    assert answers(data, data.raw["train"][0]) == "yes<end>"
    assert (
        data.tokenizer.special_tokens["<end>"] == data.encode(data.raw["train"][0])["targets"][-1]
    )


def test_whatever_decides_the_examples_is_in_the_fingerprint(module, tmp_path):
    rows = [GOOD] * 40
    same = module(rows).fingerprint
    assert module(rows).fingerprint == same
    changes = [
        {"loss_on": "all"},
        {"seed": 1},
        {"collation": Packing()},
        {"test_fraction": 0.2},
        {"context_length": 65},
        {"template": Template(TEMPLATE.begin, TEMPLATE.end)},
    ]
    found = {module(rows, **change).fingerprint for change in changes}
    found.add(module([*rows, GOOD]).fingerprint)
    assert len(found | {same}) == len(changes) + 2


def test_a_published_file_is_read_from_the_cache_folder(module, cache_folder):
    cache_folder.mkdir()
    content = json.dumps([GOOD] * 20).encode()
    (cache_folder / "published.json").write_bytes(content)
    published = Download(
        "https://example.org/published.json", sha256=digest(content), file_name="published.json"
    )
    data = module([], path=published)
    assert len(data.raw["train"]) == 17
    assert data.describe().startswith("published.json: 17 + 1 + 2 conversations")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"validation_fraction": 0.6, "test_fraction": 0.6}, "leave nothing to train on"),
    ],
)
def test_values_out_of_range_are_refused(module, setting, complaint):
    with pytest.raises(ValueError, match=complaint):
        module([GOOD] * 20, **setting)


def test_the_published_1100_entries(module, shared_data):
    data = module(
        [],
        path=shared_data / "instruction-data.json",
        tokenizer=ByteTokenizer(),
        context_length=2000,
    )
    assert {part: len(examples) for part, examples in data.raw.items()} == {
        "train": 935,
        "validation": 55,
        "test": 110,
    }
