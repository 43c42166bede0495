"""Properties of every tokenizer."""

import json
import pickle
import random
import subprocess
import sys

import pytest
import tokenizers

from llm.tokenizers import bpe, char, word
from llm.tokenizers.base import KINDS, Tokenizer, fit, load
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.huggingface import HuggingFaceTokenizer

PROSE = "The cat sat on the mat; the dog, too, sat on the mat. Don't they (both) sit? "


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request: pytest.FixtureRequest, hard_texts: list[str]) -> Tokenizer:
    """One tokenizer of each kind, trained on text that includes the hard texts."""
    texts = [PROSE * 3, *hard_texts]
    match request.param:
        case "byte":
            return ByteTokenizer()
        case "char":
            return char.train_char(texts)
        case "word":
            return word.train_word(texts)
        case "huggingface":
            return _rust_tokenizer(texts)
        case _:
            return bpe.train_bpe(texts, vocab_size=400)


def _rust_tokenizer(texts: list[str]) -> HuggingFaceTokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],  # the first id, not the last
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(backend.to_str(), "<|endoftext|>")


def test_round_trip(tokenizer: Tokenizer, hard_texts: list[str]):
    for text in hard_texts:
        ids = tokenizer.encode(text)
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        if tokenizer.lossless:
            assert tokenizer.decode(ids) == text
        else:  # a second pass changes nothing more
            assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_batch_equals_single(tokenizer: Tokenizer, hard_texts: list[str]):
    assert tokenizer.encode_batch(iter(hard_texts)) == [tokenizer.encode(t) for t in hard_texts]


def test_lone_surrogates_are_replaced_and_pairs_joined(tokenizer: Tokenizer):
    assert tokenizer.encode("a\ud800b \udfff") == tokenizer.encode("a\ufffdb \ufffd")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")


def test_special_text_is_encoded_as_ordinary_text_by_default(tokenizer: Tokenizer):
    end = tokenizer.end_of_text
    text = "The cat<|endoftext|>the dog"
    assert end == tokenizer.special_tokens["<|endoftext|>"]
    assert end not in tokenizer.encode(text)
    assert end not in tokenizer.encode_batch([text])[0]
    ids = [*tokenizer.encode("The cat"), end, *tokenizer.encode("the dog")]
    assert tokenizer.encode(text, special=True) == ids
    assert "<|endoftext|>" in tokenizer.decode(ids)


def test_further_special_tokens_follow_the_last_id(
    tokenizer: Tokenizer, hard_texts: list[str], tmp_path
):
    more = tokenizer.with_special_tokens(["<|user|>", "<|endoftext|>", "<|end|>", "<|user|>"])
    size = tokenizer.vocab_size
    assert more.special_tokens == {
        **tokenizer.special_tokens,
        "<|user|>": size,
        "<|end|>": size + 1,
    }
    assert (more.vocab_size, more.end_of_text) == (size + 2, tokenizer.end_of_text)
    assert more.encode_batch(hard_texts) == tokenizer.encode_batch(hard_texts)
    ids = [size, *tokenizer.encode("The cat"), size + 1]
    assert more.encode("<|user|>The cat<|end|>", special=True) == ids
    assert not {size, size + 1} & {*more.encode("<|user|>The cat<|end|>")}
    assert more.token_bytes(size) == b"<|user|>"
    more.save(tmp_path / "tokenizer.json")
    assert load(tmp_path / "tokenizer.json").special_tokens == more.special_tokens
    assert more.with_special_tokens(["<|end|>"]) is more
    assert tokenizer.vocab_size == size


def test_joined_token_bytes_equal_the_text(tokenizer: Tokenizer, hard_texts: list[str]):
    every = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    assert len(set(every)) == tokenizer.vocab_size
    for name, token in tokenizer.special_tokens.items():
        assert every[token] == name.encode()
    if tokenizer.lossless:
        for text in hard_texts:
            assert b"".join(every[token] for token in tokenizer.encode(text)) == text.encode()


def test_decodes_any_ids(tokenizer: Tokenizer):
    draw = random.Random(1)
    for _ in range(50):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(20)]
        tokenizer.decode(ids).encode()  # raises if the text is not valid Unicode


@pytest.mark.parametrize("offset", [-1, None])
def test_ids_outside_the_vocabulary_are_named(tokenizer: Tokenizer, offset: int | None):
    token = tokenizer.vocab_size if offset is None else offset
    with pytest.raises(ValueError, match=f"token id {token} .* 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode([token])


def test_loaded_tokenizer_equals_the_saved_one(
    tokenizer: Tokenizer, hard_texts: list[str], tmp_path
):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert json.loads(path.read_text())["kind"] == tokenizer.kind
    for other in (load(path), pickle.loads(pickle.dumps(tokenizer))):
        assert type(other) is type(tokenizer)
        assert other.special_tokens == tokenizer.special_tokens
        assert other.encode_batch(hard_texts) == tokenizer.encode_batch(hard_texts)


def test_fit_keeps_a_tokenizer_and_trains_a_factory(tokenizer: Tokenizer):
    assert fit(tokenizer, ["text"]) is tokenizer
    assert fit(char.train_char, iter(["ab", "c"])).encode("cab") == [2, 0, 1]


@pytest.mark.parametrize(
    "train", [char.train_char, word.train_word, lambda texts: bpe.train_bpe(texts, 300)]
)
@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_training_without_text_is_refused(train, texts: list[str]):
    with pytest.raises(ValueError, match="training text"):
        train(iter(texts))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{not json",
        "[]",
        "{}",
        '{"kind": "os.system"}',
        '{"kind": ["bpe"]}',
        '{"kind": "bpe"}',
        '{"kind": "bpe", "merges": [[0, 999]]}',
        '{"kind": "bpe", "merges": [[0, 1], [0, 1]]}',
        '{"kind": "bpe", "merges": [[0]]}',
        '{"kind": "bpe", "merges": [], "special_tokens": ["x", "x"]}',
        '{"kind": "byte", "extra": 1}',
        '{"kind": "byte", "special_tokens": ["", "x"]}',
        '{"kind": "char", "characters": "aa"}',
        '{"kind": "char", "characters": "\\ud800"}',
        '{"kind": "word", "words": []}',
        '{"kind": "word", "words": ["two words"]}',
        '{"kind": "huggingface", "definition": "{}"}',
        '{"kind": "huggingface"}',
        '{"kind": "word", "words": ["one"], "special_tokens": ["<|endoftext|>"]}',
    ],
)
def test_a_damaged_file_is_named(content: str, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json") as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"broken\.json"):
        load(path)


@pytest.mark.parametrize(
    "content", ['{"kind": "bpe", "merges": [["a", "b"]]}', '{"kind": "char", "characters": 7}']
)
def test_values_of_a_wrong_type_are_reported_with_the_file(content: str, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json: the .* tokenizer is damaged"):
        load(path)


def test_values_of_a_wrong_type_are_reported_without_runtime_type_checks(tmp_path):
    """In another process, because annotations are checked at run time in this one."""
    contents = [
        '{"kind": "char", "characters": ["a", 1]}',
        '{"kind": "byte", "special_tokens": [1]}',
        '{"kind": "word", "words": [1]}',
    ]
    files = [tmp_path / f"{number}.json" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    script = (
        "import sys\nfrom llm.tokenizers.base import load\n"
        "for path in sys.argv[1:]:\n"
        "    try: load(path)\n"
        "    except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, *map(str, files)]
    errors = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(errors) == len(files)
    for line, file in zip(errors, files, strict=True):
        assert line.startswith(
            f"{file}: the {json.loads(file.read_text())['kind']} tokenizer is damaged"
        )
