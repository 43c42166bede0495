import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llm.data.corpora import tokenization
from llm.data.corpora.base import DocumentPiece
from llm.data.corpora.tokenization import batch_documents, cut_documents, tokenize
from llm.tokenizers import bpe
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.gpt2 import gpt2_tokenizer


def whole(documents: Iterable[str]) -> Iterator[DocumentPiece]:
    """Return each document in one piece."""
    return (DocumentPiece(document, ends=True) for document in documents)


def test_documents_are_followed_by_the_separator(tmp_path: Path):
    tokenizer = ByteTokenizer()
    end = tokenizer.end_of_text
    part = tokenize(whole(["ab", "é"]), tokenizer, path=tmp_path / "t", separator=end)
    tokens = np.fromfile(tmp_path / "t", dtype=np.uint16).tolist()
    assert tokens == [97, 98, end, *"é".encode(), end]
    assert (part.documents, part.characters, part.bytes, part.tokens) == (2, 3, 4, 6)


def test_text_that_spells_the_separator_is_text(tmp_path: Path):
    tokenizer = bpe.train_bpe(["<|endoftext|> a <|endoftext|>"], vocab_size=257)
    tokenize(
        whole(["a<|endoftext|>b"]), tokenizer, path=tmp_path / "t", separator=tokenizer.end_of_text
    )
    tokens = np.fromfile(tmp_path / "t", dtype=np.uint16).tolist()
    assert tokens.count(tokenizer.end_of_text) == 1


def test_large_vocabularies_are_written_with_four_bytes(tmp_path: Path):
    class Wide(ByteTokenizer):
        @property
        def vocab_size(self) -> int:
            return 70_000

        def encode_ordinary(self, text: str) -> list[int]:
            return [69_999 for _ in text]

    tokenize(whole(["abc"]), Wide(), path=tmp_path / "t")
    assert np.fromfile(tmp_path / "t", dtype=np.uint32).tolist() == [69_999] * 3


def random_texts(number: int, length: int) -> list[str]:
    draw = random.Random(0)
    words = [
        "a",
        "The ",
        "isn't",
        "\n",
        "\n\n",
        "  ",
        "\t",
        "123",
        "…",
        "é",
        "\r\n",
        ".\n",
        "x \n y",
        " ",
    ]
    return ["".join(draw.choices(words, k=length)) for _ in range(number)]


def test_pieces_join_to_the_document(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenization, "PIECE", 20)
    for document in random_texts(50, 60):
        cut = list(cut_documents(whole([document])))
        assert "".join(text for text, _ in cut) == document
        assert [last for _, last in cut] == [False] * (len(cut) - 1) + [True]
    assert len(cut) > 3


@pytest.mark.parametrize("step", [1, 3, 17, 50])
def test_documents_are_cut_at_the_same_places_however_they_come(monkeypatch, step: int):
    monkeypatch.setattr(tokenization, "PIECE", 20)
    documents = [*random_texts(20, 60), "x" * 200, "日本語" * 30]
    parts = [
        DocumentPiece(document[at : at + step], ends=at + step >= len(document))
        for document in documents
        for at in range(0, len(document), step)
    ]
    assert list(cut_documents(parts)) == list(cut_documents(whole(documents)))


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_cutting_documents_changes_no_token(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request
):
    monkeypatch.setattr(tokenization, "PIECE", 20)
    monkeypatch.setattr(tokenization, "BATCH", 100)
    texts = random_texts(50, 60)
    if name == "gpt2":
        shared = request.getfixturevalue("shared_data")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    tokenizer = gpt2_tokenizer() if name == "gpt2" else bpe.train_bpe(texts, vocab_size=300)
    tokenize(whole(texts), tokenizer, path=tmp_path / "t")
    tokens = [token for text in texts for token in tokenizer.encode(text)]
    assert np.fromfile(tmp_path / "t", dtype=np.uint16).tolist() == tokens


def test_no_more_than_a_batch_is_read_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenization, "BATCH", 10)
    read = []

    def documents():
        for i in range(100):
            read.append(i)
            yield "12345"

    stream = batch_documents(whole(documents()))
    for i in range(1, 5):
        next(stream)
        assert len(read) == 2 * i


def test_progress_adds_up_to_all_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenization, "BATCH", 10)
    done: list[int] = []
    tokenize(whole(["12345"] * 9), ByteTokenizer(), path=tmp_path / "t", advance=done.append)
    assert sum(done) == 45
    assert len(done) == 5


def test_half_a_character_from_json_is_counted_and_written(tmp_path: Path):
    part = tokenize(whole(["a\ud800b"]), ByteTokenizer(), path=tmp_path / "t")
    tokens = np.fromfile(tmp_path / "t", dtype=np.uint16).tolist()
    assert ByteTokenizer().decode(tokens) == "a\N{REPLACEMENT CHARACTER}b"
    assert part.bytes == part.tokens == 5
