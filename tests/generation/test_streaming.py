import random

import pytest
import tokenizers
from hard_texts import HARD_TEXTS, random_texts
from made_tokenizers import PROSE, byte_level, sentencepiece_like
from tokenizers import decoders, models, pre_tokenizers

from llm.generation.streaming import IncrementalDecoder
from llm.tokenizers import bpe, char
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.tokenizers.word import WordTokenizer
from llm.tokenizers.wordpiece import WordPieceTokenizer

REPLACEMENT = "\ufffd"


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
        expected = ByteTokenizer().decode([token for token in tokens if token != 256])
        assert "".join(pieces) + rest == expected, tokens


def test_valid_text_never_shows_a_replacement_character():
    rng = random.Random(0)
    text = "".join(chr(rng.choice([65, 0xE9, 0x20AC, 0x1F600, 0x10FFFF])) for _ in range(500))
    pieces, rest = decode(ByteTokenizer(), text.encode())
    assert REPLACEMENT not in "".join(pieces)
    assert "".join(pieces) == text
    assert rest == ""


def test_replacement_character_of_the_text_itself_is_kept():
    pieces, rest = decode(ByteTokenizer(), f"a{REPLACEMENT}".encode())
    assert "".join(pieces) + rest == f"a{REPLACEMENT}"


def test_incomplete_character_is_replaced_at_the_end():
    pieces, rest = decode(ByteTokenizer(), b"a\xe2\x82")
    assert ("".join(pieces), rest) == ("a", REPLACEMENT)


def test_invalid_bytes_do_not_delay_the_text_after_them():
    pieces, _ = decode(ByteTokenizer(), b"\xff\xff\xff\xffok")
    assert "".join(pieces) == REPLACEMENT * 4 + "ok"
    assert pieces[3] == REPLACEMENT


def test_words_have_the_same_spaces_as_in_prompt_and_text_together():
    words = WordTokenizer(["to", "be", "or", "not", ","])
    pieces, rest = decode(words, [3, 0, 1, 4, 2], prompt=[0, 1, 2])
    assert pieces == [" not", " to", " be", ",", " or"]
    assert rest == ""


def test_a_document_begins_without_a_space():
    words = WordTokenizer(["to", "be"])
    pieces, _ = decode(words, [0, 1], prompt=[words.end_of_text])
    assert pieces == ["to", " be"]


def test_quoted_word_is_shown_when_the_quote_is_closed():
    words = WordTokenizer(["he", "said", '"', "no"])
    pieces, rest = decode(words, [0, 1, 2, 3, 2, 0])
    assert pieces == ["he", " said", ' "', "", 'no"', " he"]
    assert rest == ""


def unigram():
    """A tokenizer like T5's, with bytes for unknown characters."""
    alphabet = [(letter, -2.0) for letter in sorted({*PROSE, "▁"} - {" "})]
    names = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), *alphabet]
    backend = tokenizers.Tokenizer(models.Unigram(names, 0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    return backend


def wordpiece():
    words = {"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, ".": 4, "'": 5, "n": 6, "t": 7}
    backend = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


TOKENIZERS = {
    "byte": lambda: ByteTokenizer(),
    "char": lambda: char.train_char([PROSE]),
    "bpe": lambda: bpe.train_bpe([PROSE * 3], 270),
    "word": lambda: WordTokenizer(["he", "don", "t", "'", "’", '"', ",", "(", ")", "--", "."]),
    "wordpiece": lambda: WordPieceTokenizer(["[UNK]", "[CLS]", "[SEP]", "a", "##b", "##c", "."]),
    "byte level": lambda: HuggingFaceTokenizer(byte_level(add_prefix_space=True).to_str()),
    "byte fallback": lambda: HuggingFaceTokenizer(sentencepiece_like().to_str()),
    "unigram": lambda: HuggingFaceTokenizer(unigram().to_str()),
    "words' pieces": lambda: HuggingFaceTokenizer(wordpiece().to_str()),
}


def require_same(tokenizer, tokens, start=0):
    """Require that the joined pieces are the text of all tokens, and that no piece is changed later."""
    special = {*tokenizer.special_tokens.values()}
    prompt, rest = tokens[:start], [token for token in tokens[start:] if token not in special]
    pieces, last = decode(tokenizer, tokens[start:], prompt)
    prompt = [token for token in prompt if token not in special]
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *rest])
    assert before + "".join(pieces) + last == whole, (tokens, start)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_streamed_text_is_the_text_of_all_tokens(name):
    tokenizer = TOKENIZERS[name]()
    hard = ["📚 café", *HARD_TEXTS, *random_texts(seed=0, count=20)]
    for text in [PROSE, *hard] if name != "char" else [PROSE]:
        tokens = tokenizer.encode(text)
        require_same(tokenizer, tokens)
        require_same(tokenizer, tokens, len(tokenizer.encode(text[: len(text) // 2])))
    draw = random.Random(0)
    for _ in range(60):
        require_same(tokenizer, draw.choices(range(tokenizer.vocab_size), k=30))


def test_only_text_that_the_next_token_can_change_is_held_back():
    tokenizer = HuggingFaceTokenizer(sentencepiece_like().to_str())
    pieces, rest = decode(tokenizer, tokenizer.encode("the 📚 mat"))
    assert "".join(pieces) + rest == "the 📚 mat"
    assert pieces[:3] == ["", "the", " "]
    assert pieces[-1] == "📚 mat"  # bytes are returned with the first token that is not a byte
    assert not any(REPLACEMENT in piece for piece in pieces)
