import json
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from llm.config.build import build
from llm.data.errors import DataError
from llm.data.examples.collation import Padding
from llm.data.examples.labelled import LabelledDataModule, keep_letters, sort_names
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tokenizers import char
from llm.tokenizers.byte import ByteTokenizer

TEXTS = [("even" if n % 3 else "odd", f"text number {'x' * n}") for n in range(1, 61)]


@pytest.fixture
def write(tmp_path):
    def written(name, rows, fields=("label", "text")):
        file = tmp_path / name
        lines = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
        file.write_text("\n".join(lines), encoding="utf-8")
        return str(file)

    return written


def make(path, *, prepare=True, **settings):
    defaults = {"tokenizer": ByteTokenizer(), "context_length": 128, "collation": Padding()}
    defaults["batch_size"] = 4
    data = LabelledDataModule(path=path, **{**defaults, **settings})
    if prepare:
        data.prepare_data()
        data.setup("fit")
    return data


def shares(examples):
    sizes = Counter(example.label for example in examples)
    return {name: size / sizes.total() for name, size in sizes.items()}


# The published messages


@pytest.fixture
def spam(shared_data, monkeypatch):
    """The data module of `data=spam`."""
    monkeypatch.setenv("LLM_CACHE", str(shared_data))

    def made(**settings):
        with initialize_config_module(config_module="llm.conf", version_base="1.3"):
            config = compose("train", ["data=spam", "size=nano", "tokenizer=byte"])
        config.data.update(settings)
        data = build(config.data, tokenizer=ByteTokenizer())
        data.prepare_data()
        return data

    return made


def test_spam_is_read_whole_and_split_without_repeats(spam):
    data = spam()
    sizes = {part: len(examples) for part, examples in data.raw.items()}
    assert sum(sizes.values()) + data.repeated == 5574
    assert data.repeated == 487  # 9 in 100
    assert data.classes == ["ham", "spam"]
    whole = sum(sizes.values())
    for part, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        assert sizes[part] == pytest.approx(share * whole, abs=2)
    spam_shares = [shares(examples)["spam"] for examples in data.raw.values()]
    assert spam_shares == pytest.approx([spam_shares[0]] * 3, abs=1e-3)
    keys = [{keep_letters(e.text) for e in examples} for examples in data.raw.values()]
    assert len(keys[0] | keys[1] | keys[2]) == sum(map(len, keys)) == whole


def test_a_message_with_open_quotes_is_one_message(spam):
    messages = [example for examples in spam().raw.values() for example in examples]
    assert max(len(example.text) for example in messages) == 910
    assert sum(example.text.count('"') % 2 for example in messages) > 10
    assert all("\n" not in example.text for example in messages)


def test_the_split_of_spam_is_the_split_seeds(spam):
    assert spam(seed=1).raw == spam(seed=2).raw
    first, second = ([e.where for e in spam(split_seed=seed).raw["test"]] for seed in (1, 2))
    assert first != second
    assert len(set(first) & set(second)) < 0.3 * len(first)


@pytest.mark.parametrize("balance", ["none", "undersample", "weights"])
def test_spam_is_balanced_in_the_training_part_alone(spam, balance):
    data, plain = spam(balance=balance), spam()
    assert data.raw["test"] == plain.raw["test"]
    assert data.raw["validation"] == plain.raw["validation"]
    sizes = Counter(example.label for example in data.raw["train"])
    if balance == "undersample":
        assert (
            sizes["ham"]
            == sizes["spam"]
            == shares(plain.raw["train"])["spam"] * len(plain.raw["train"])
        )
        assert set(data.raw["train"]) < set(plain.raw["train"])
    else:
        assert data.raw["train"] == plain.raw["train"]
    if balance == "weights":
        counted = [
            w * sizes[name] for w, name in zip(data.class_weights, data.classes, strict=True)
        ]
        assert counted == pytest.approx([sizes["ham"]] * 2)
    else:
        assert data.class_weights is None


# What is in a batch


def test_batches_hold_texts_labels_and_what_is_real(write):
    data = make(write("a.jsonl", TEXTS), collation=Padding(multiple=1))
    seen = set()
    for batch in data.test_dataloader():
        for row in range(len(batch["labels"])):
            example = data.raw["test"][batch["rows"][row]]
            real = batch["attention_mask"][row]
            assert bytes(batch["tokens"][row, real].tolist()).decode() == example.text
            assert real.tolist() == sorted(real.tolist(), reverse=True)  # filled up on the right
            assert data.classes[batch["labels"][row]] == example.label
            seen.add(example.where)
        assert batch["attention_mask"].any(dim=0).all()  # no longer than the longest
    assert len(seen) == len(data.raw["test"]) == 12


def test_the_shares_of_devices_are_padded_without_targets(write):
    data = make(write("a.jsonl", TEXTS))
    rows = data.dataset("validation")
    batch = rows[np.array([len(rows) - 1, len(rows)])]  # type: ignore[index]
    assert batch["labels"][0] != IGNORE_INDEX
    assert batch["labels"][1] == IGNORE_INDEX


def test_long_texts_keep_their_beginning_and_are_counted(write):
    with pytest.warns(UserWarning, match=r"data\.context_length: 40 of 60 texts have more than 32"):
        data = make(write("a.jsonl", TEXTS), context_length=32)
    whole = [example.text.encode() for examples in data.raw.values() for example in examples]
    assert data.cut == sum(len(text) > 32 for text in whole) > 0
    for place, row in enumerate(data.encoded["train"]):
        assert bytes(row["tokens"]) == data.raw["train"][place].text.encode()[:32]
    assert f"{data.cut} texts cut to 32 tokens" in data.describe()


# Classes


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["ham", "spam"], ["ham", "spam"]),
        ([10, 9, 2], ["2", "9", "10"]),
        (["10", "9"], ["9", "10"]),
        ([True, False], ["false", "true"]),
        ([0.5, -1], ["-1", "0.5"]),
        (["b", "a", "c", "10"], ["10", "a", "b", "c"]),
        ([" ham ", "spam", "ham"], ["ham", "spam"]),
    ],
)
def test_classes_are_found_and_sorted(write, labels, classes):
    rows = [(labels[n % len(labels)], f"text {'x' * n}") for n in range(40)]
    data = make(write("a.jsonl", rows))
    assert data.classes == classes
    assert data.num_classes == len(classes)
    assert {data.classes[row["labels"][0]] for row in data.encoded["train"]} == set(classes)


@pytest.mark.parametrize(
    "names", [["1", "1.0", "1e0"], ["2", "10", "nan"], ["inf", "nan", "-1"], ["2", "10", "02"]]
)
def test_the_order_of_classes_is_deterministic(names):
    assert len({tuple(sort_names(each)) for each in permutations(names)}) == 1


def test_classes_that_are_given_keep_their_order_and_refuse_others(write):
    path = write("a.jsonl", TEXTS)
    assert make(path, classes=["odd", "never", "even"]).classes == ["odd", "never", "even"]
    with pytest.raises(
        DataError, match=r"a\.jsonl, line \d+: 'odd' is not one of the classes even, x"
    ):
        make(path, classes=["even", "x"])
    data = make(write("n.jsonl", [(n % 2, "x" * (n + 1)) for n in range(40)]), classes=[1, 0])
    assert data.classes == ["1", "0"]


@pytest.mark.parametrize("classes", [[], ["a"], ["a", "a"], ["1", 1]])
def test_fewer_than_two_classes_are_refused(write, classes):
    path = write("a.jsonl", TEXTS)
    with pytest.raises(ValueError, match="two or more, each once"):
        make(path, prepare=False, classes=classes)
    with pytest.raises(DataError, match="has only the class even"):
        make(write("b.jsonl", [("even", "x" * n) for n in range(1, 30)]))


# Repeats, files of their own, malformed rows


def test_repeats_go_before_the_split(write):
    rows = [
        (
            "a" if n % 2 else "b",
            f"Text  {'x' * (n % 20)}".upper() if n > 30 else f"text {'x' * (n % 20)}",
        )
        for n in range(60)
    ]
    data = make(write("a.jsonl", rows))
    assert sum(map(len, data.raw.values())) == 20
    assert data.repeated == 40
    assert "40 repeated texts left out" in data.describe()


def test_numbers_are_part_of_a_text_unless_letters_alone_count(write):
    rows = [("a" if n % 2 else "b", f"call {n} now!") for n in range(40)] + [
        ("a", "77"),
        ("b", "78"),
    ]
    path = write("a.jsonl", rows)
    assert make(path).repeated == 0
    with pytest.raises(DataError, match="no texts are left for the validation part"):
        make(path, repeats="letters")
    assert keep_letters("77") != keep_letters("78")


def test_files_of_their_own_are_kept_and_leave_the_training_what_they_hold(write):
    paths = {
        "validation_path": write("v.jsonl", TEXTS[:10]),
        "test_path": write("t.jsonl", TEXTS[5:20]),
    }
    data = make(write("a.jsonl", TEXTS), **paths)
    assert [e.text for e in data.raw["test"]] == [text for _, text in TEXTS[5:20]]
    assert [e.text for e in data.raw["validation"]] == [text for _, text in TEXTS[:5]]
    assert [e.text for e in data.raw["train"]] == [text for _, text in TEXTS[20:]]


def test_a_test_file_alone_leaves_the_validation_to_the_split(write):
    data = make(write("a.jsonl", TEXTS[:40]), test_path=write("t.jsonl", TEXTS[40:]))
    assert len(data.raw["test"]) == 20
    assert len(data.raw["validation"]) == pytest.approx(4, abs=1)
    assert len(data.raw["train"]) + len(data.raw["validation"]) == 40


BAD = [
    ('{"label": "even"}', "nothing under 'text' .data.text.; there are label"),
    ('{"text": "x y z"}', "nothing under 'label' .data.label.; there are text"),
    ('{"label": "even", "text": " \\n"}', "no text under 'text'"),
    ('{"label": "even", "text": 5}', "no text under 'text'"),
    ('{"label": "", "text": "x y z"}', "is not a label"),
    ('{"label": ["even"], "text": "x y z"}', "is not a label"),
    ('{"label": null, "text": "x y z"}', "nothing under 'label'"),
    ('{"label": "even", "text": "x y z"', "not JSON"),
    ('"x"', "is not a JSON object"),
]


@pytest.mark.parametrize(("line", "problem"), BAD)
def test_malformed_rows_are_named_or_left_out_with_a_count(write, tmp_path, line, problem):
    path = write("a.jsonl", TEXTS)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    lines.insert(6, line)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"a\.jsonl, line 7: .*{problem}") as error:
        make(path)
    assert "data.malformed=skip" in str(error.value)
    with pytest.warns(UserWarning, match="malformed texts: 1 left out"):
        data = make(path, malformed="skip")
    assert sum(map(len, data.raw.values())) == 60
    assert "1 malformed rows left out" in data.describe()


def test_a_text_that_the_tokenizer_cannot_encode_is_malformed(write):
    path = write("a.jsonl", TEXTS)
    test = write("t.jsonl", [("even", "ünknown ¤"), ("odd", "text number")])
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: "):
        make(path, tokenizer=char.train_char, test_path=test)
    with pytest.warns(UserWarning, match="malformed texts: 1 left out"):
        data = make(path, tokenizer=char.train_char, test_path=test, malformed="skip")
    (batch,) = data.test_dataloader()
    assert [data.raw["test"][row].text for row in batch["rows"]] == ["text number"]


# The rest


@pytest.mark.parametrize("fraction", ["validation_fraction", "test_fraction"])
def test_fractions_are_checked(write, fraction):
    with pytest.raises(ValueError, match=f"{fraction}=1.5"):
        make("a.jsonl", prepare=False, **{fraction: 1.5})


def test_the_fingerprint_changes_with_what_is_learned(write):
    path = write("a.jsonl", TEXTS)
    prints = [
        make(path).fingerprint,
        make(path, seed=1).fingerprint,
        make(path, balance="weights").fingerprint,
        make(path, balance="undersample").fingerprint,
        make(path, classes=["odd", "even"]).fingerprint,
        make(write("b.jsonl", [*TEXTS[:-1], ("even", TEXTS[-1][1])])).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert make(path, batch_size=2, malformed="skip").fingerprint == prints[0]


def test_a_tokenizer_is_fitted_to_the_training_part_alone(write):
    path = write("a.jsonl", [(n % 2, chr(0x4E00 + n)) for n in range(60)])
    fitted = []

    def fit(texts):
        fitted.extend(texts)
        return ByteTokenizer()

    data = make(path, tokenizer=fit)
    assert fitted == [example.text for example in data.raw["train"]]
    assert all(torch.is_tensor(value) for value in next(iter(data.train_dataloader())).values())


# What it is compared by


def test_the_same_texts_held_out_have_the_same_name(write):
    path = write("a.jsonl", TEXTS)
    data = make(path)
    assert make(path, tokenizer=char.train_char).corpus == data.corpus
    assert make(path, tokenizer=char.train_char).vocabulary == data.vocabulary, (
        "a text counts as one"
    )
    assert make(path, seed=1).corpus != data.corpus
    assert make(path, balance="weights").vocabulary != data.vocabulary
