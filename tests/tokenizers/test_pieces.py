"""Long texts are divided between words, and the pieces joined give the text."""

import pytest

from llm.tokenizers.pieces import cut_between_words

TEXT = "one two  three\nfour\n\nfive six\tseven " * 20


@pytest.mark.parametrize("size", [1, 2, 7, 30, 10_000])
def test_pieces_make_up_the_text_and_each_but_the_last_has_the_size(size, hard_texts):
    for text in (TEXT, "", *hard_texts):
        pieces = list(cut_between_words(text, size))
        assert "".join(pieces) == text
        assert all(len(piece) >= size for piece in pieces[:-1])


def test_text_is_cut_only_before_a_single_space_and_after_a_single_newline():
    assert list(cut_between_words("ab cd", 1)) == ["ab", " cd"]
    assert list(cut_between_words("ab\ncd", 1)) == ["ab\n", "cd"]
    for together in ("ab  cd", "ab\n\ncd", "ab\tcd", " abcd", "abcd "):
        assert list(cut_between_words(together, 1)) == [together]


def test_a_piece_ends_with_the_word_that_reaches_its_size():
    assert list(cut_between_words("aaa bbb ccc", 4)) == ["aaa bbb", " ccc"]


def test_characters_known_to_have_no_place_to_cut_are_not_searched():
    text = "a b" + "c" * 10 + " d"
    assert list(cut_between_words(text, 1, searched=5)) == ["a bcccccccccc", " d"]
