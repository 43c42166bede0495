import numpy as np
import pytest

from llm.data.corpora.base import DocumentPiece, Source, join_pieces
from llm.data.errors import DataError
from llm.data.split import (
    choose_held_out,
    effective_number,
    published_split,
    split_corpus,
    split_examples,
)


def read(part) -> list[str]:
    return list(join_pieces(part()))


def test_one_document_is_split_by_position_as_nanogpt_does(texts):
    text = "".join(chr(65 + i % 26) for i in range(1003))
    parts = split_corpus(texts(text), 0.1, seed=3)
    assert read(parts.train) == [text[: int(0.9 * 1003)]]
    assert read(parts.validation) == [text[int(0.9 * 1003) :]]
    assert not parts.separated
    assert parts.characters == 1003


def test_every_document_is_in_exactly_one_part_and_in_order(texts):
    documents = [f"document {i} " * (1 + i % 7) for i in range(200)]
    parts = split_corpus(texts(*documents), 0.1, seed=0)
    train, held_out = read(parts.train), read(parts.validation)
    assert sorted(train + held_out) == sorted(documents)
    assert not set(train) & set(held_out)
    assert train == [document for document in documents if document in set(train)]
    assert sum(map(len, held_out)) == pytest.approx(0.1 * sum(map(len, documents)), rel=0.1)
    assert read(parts.train) == train, "a part can be read again"
    assert parts.separated


def test_seed_decides_which_documents_are_held_out(texts):
    documents = [f"document {i}" for i in range(100)]
    draws = [
        tuple(read(split_corpus(texts(*documents), 0.1, seed=seed).validation))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("lengths", [[5, 5], [1, 1000], [1000, 1], [3, 1000, 1000]])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.9])
def test_both_parts_have_a_document(lengths: list[int], fraction: float):
    held_out = choose_held_out(np.array(lengths), fraction, seed=0)
    assert 0 < held_out.sum() < len(lengths)
    assert np.array(lengths)[~held_out].sum() > 0


def test_documents_without_text_are_ignored(texts):
    parts = split_corpus(texts("", "some text", ""), 0.5, seed=0)
    assert read(parts.train) + read(parts.validation) == ["some", " text"]


def test_the_end_of_each_of_few_documents_is_held_out(texts):
    """One held-out file of two, or one of six files of different kinds, would not be representative."""
    documents = ["a" * 100, "b" * 250, "c" * 31]
    parts = split_corpus(texts(*documents), 0.1, seed=3)
    assert read(parts.train) == ["a" * 90, "b" * 225, "c" * 27]
    assert read(parts.validation) == ["a" * 10, "b" * 25, "c" * 4]
    assert parts.separated
    assert not parts.is_drawn
    assert parts.held_out == "the last 10 % of each of 3 documents"


def test_two_long_documents_among_short_ones_count_as_few_documents(texts):
    documents = ["x" * 100_000, "y" * 100_000, *(f"short {i}" for i in range(300))]
    parts = split_corpus(texts(*documents), 0.1, seed=0)
    assert not parts.is_drawn
    assert read(parts.validation)[:2] == ["x" * 10_000, "y" * 10_000]


def test_effective_number_is_the_number_of_documents_of_equal_length():
    assert effective_number(np.full(30, 7)) == pytest.approx(30)
    assert effective_number(np.array([10**9, 10**9, *[1] * 1000])) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("size", [1, 7, 33, 1000])
@pytest.mark.parametrize("number", [1, 3, 30])
def test_split_is_the_same_for_documents_read_in_pieces(texts, size: int, number: int):
    documents = [chr(97 + i % 26) * (50 + 3 * i) + "." for i in range(number)]

    class InPieces(Source):
        name = "pieces"

        def documents(self):
            yield from documents

        def pieces(self):
            for text in documents:
                for at in range(0, len(text), size):
                    yield DocumentPiece(text[at : at + size], ends=at + size >= len(text))

        def fingerprint(self) -> str:
            return "pieces"

    first, second = (
        split_corpus(source, 0.1, seed=0) for source in (texts(*documents), InPieces())
    )
    assert read(first.train) == read(second.train)
    assert read(first.validation) == read(second.validation)
    assert first.held_out == second.held_out


def test_large_document_does_not_enlarge_the_held_out_part():
    lengths = np.array([1_000_000] + [1000] * 200)
    for seed in range(20):
        held_out = choose_held_out(lengths, 0.1, seed=seed)
        assert lengths[held_out].sum() <= 0.1 * lengths.sum()
        assert not held_out[0]


def test_a_published_split_is_kept(texts):
    parts = published_split(texts("a", "b"), texts("c"))
    assert read(parts.train) == ["a", "b"]
    assert read(parts.validation) == ["c"]
    assert parts.separated
    assert not published_split(texts("a"), texts("c")).separated


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_no_text_is_an_error_that_names_the_source(texts, documents: list[str]):
    with pytest.raises(DataError, match=r"my notes: has no text"):
        split_corpus(texts(*documents, name="my notes"), 0.1, seed=0)


def test_too_little_text_to_split_is_an_error_with_numbers(texts):
    with pytest.raises(DataError, match=r"x: 1 characters cannot be split .*fraction=0.1"):
        split_corpus(texts("a", name="x"), 0.1, seed=0)


def test_examples_are_split_in_the_same_proportions_in_each_group():
    groups = ["spam"] * 70 + ["ham"] * 430
    parts = split_examples(groups, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=3)
    dealt = sorted(place for places in parts.values() for place in places)
    assert dealt == list(range(500)), "every example in exactly one part"
    assert [len(places) for places in parts.values()] == [350, 50, 100]
    assert [sum(place < 70 for place in places) for places in parts.values()] == [49, 7, 14]
    assert parts == split_examples(groups, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=3)
    assert parts != split_examples(groups, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=4)
