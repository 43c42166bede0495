import random

from llm.generation.streaming import REPLACEMENT, IncrementalDecoder
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.word import WordTokenizer


def decode(tokenizer, tokens, prompt=()):
    decoder = IncrementalDecoder(tokenizer, prompt)
    pieces = [decoder.add(token) for token in tokens]
    return pieces, decoder.close()


def test_a_character_appears_when_its_last_byte_does():
    pieces, rest = decode(ByteTokenizer(), "é€😀a".encode())
    assert pieces == ["", "é", "", "", "€", "", "", "", "😀", "a"]
    assert rest == ""


def test_joined_pieces_are_the_whole_text_for_any_bytes():
    # Bytes that begin and continue characters, drawn often, make every kind of broken text.
    alphabet = [*b"a\x80\xbf\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff\xed\xa0", 256]
    rng = random.Random(0)
    for _ in range(500):
        tokens = rng.choices(alphabet, k=30)
        pieces, rest = decode(ByteTokenizer(), tokens)
        assert "".join(pieces) + rest == ByteTokenizer().decode(tokens), tokens


def test_valid_text_never_shows_a_replacement():
    rng = random.Random(0)
    text = "".join(chr(rng.choice([65, 0xE9, 0x20AC, 0x1F600, 0x10FFFF])) for _ in range(500))
    pieces, rest = decode(ByteTokenizer(), text.encode())
    assert REPLACEMENT not in "".join(pieces)
    assert "".join(pieces) == text
    assert rest == ""


def test_a_replacement_in_the_text_itself_is_kept():
    pieces, rest = decode(ByteTokenizer(), f"a{REPLACEMENT}".encode())
    assert "".join(pieces) + rest == f"a{REPLACEMENT}"


def test_a_character_cut_off_is_replaced_at_the_end():
    pieces, rest = decode(ByteTokenizer(), b"a\xe2\x82")
    assert ("".join(pieces), rest) == ("a", REPLACEMENT)


def test_wrong_bytes_do_not_hold_up_what_follows():
    pieces, _ = decode(ByteTokenizer(), b"\xff\xff\xff\xffok")
    assert "".join(pieces) == REPLACEMENT * 4 + "ok"
    assert pieces[3] == REPLACEMENT


def test_words_are_spaced_as_in_the_whole_text_prompt_included():
    words = WordTokenizer(["to", "be", "or", "not", ","])
    pieces, rest = decode(words, [3, 0, 1, 4, 2], prompt=[0, 1, 2])
    assert pieces == [" not", " to", " be", ",", " or"]
    assert rest == ""


def test_a_document_begins_without_a_space():
    words = WordTokenizer(["to", "be"])
    pieces, _ = decode(words, [0, 1], prompt=[words.end_of_text])
    assert pieces == ["to", " be"]


def test_no_word_is_lost_where_the_tokenizer_sets_the_past_anew():
    words = WordTokenizer(["he", "don", "t", "'", '"', ",", "(", ")", "--"])
    rng = random.Random(0)
    for _ in range(300):
        tokens = rng.choices(range(9), k=15)
        pieces, rest = decode(words, tokens)
        shown = "".join(pieces) + rest
        assert shown.replace(" ", "") == words.decode(tokens).replace(" ", ""), tokens
