"""WordPiece: the ids of transformers' BertTokenizer, and the interface of a tokenizer."""

import json
import random
import unicodedata
from functools import cache

import pytest

from llm.tokenizers.base import load
from llm.tokenizers.wordpiece import WordPieceTokenizer, read_wordpiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PROSE = [
    "He was playing unaffably; they weren't re-playing $3.50 games (at 10%)!",
    "Ο ΟΔΥΣΣΕΥΣ, İSTANBUL, STRAßE, ǅ and ﬁne",
    "The [CLS] token and [SEP] are text here, [MASK]ed or not.",
    "東京は日本の首都です。한국어 텍스트",
]


@cache
def pieces(texts: tuple[str, ...]) -> list[str]:
    """A vocabulary that covers about half of the words: characters, pairs and some whole words."""
    chance = random.Random(0)
    spelled = [*texts, *(unicodedata.normalize("NFD", text).lower() for text in texts)]
    found: dict[str, None] = {}
    for text in spelled:
        for word in text.split():
            parts = [word[i : i + n] for n in (1, 2, 3) for i in range(len(word))] + [word]
            found |= dict.fromkeys(p for p in parts if p and (len(p) == 1 or chance.random() < 0.3))
    kept = [piece for piece in found if chance.random() < 0.9 and piece not in SPECIAL]
    kept = [piece for piece in kept if piece.isprintable()]
    return list(dict.fromkeys([*SPECIAL, *kept, *(f"##{piece}" for piece in kept)]))


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_equal_those_of_transformers(hard_texts, lowercase):
    from transformers import BertTokenizer

    texts = [*hard_texts, *PROSE]
    vocabulary = pieces(tuple(texts))
    theirs = BertTokenizer(
        vocab={piece: token for token, piece in enumerate(vocabulary)}, do_lower_case=lowercase
    )
    ours = WordPieceTokenizer(vocabulary, lowercase=lowercase)
    unknown = 0
    for text in texts:
        expected = theirs(text, split_special_tokens=True)["input_ids"]
        assert ours.with_ends(ours.encode(text), most=10_000) == expected, text
        assert (
            ours.encode(text, special=True) == theirs(text, add_special_tokens=False)["input_ids"]
        )
        unknown += expected.count(1)
    assert 0 < unknown < sum(len(ours.encode(text)) for text in texts) / 2, "few are unknown"


def test_a_word_is_cut_into_the_longest_pieces():
    tokenizer = WordPieceTokenizer([*SPECIAL, "un", "##aff", "##able", "##a", "unable", "u"])
    assert [tokenizer.pieces[t] for t in tokenizer.encode("Unaffable")] == ["un", "##aff", "##able"]
    assert tokenizer.encode("unaffably") == [1], (
        "a word that cannot be spelled to its end is unknown"
    )
    assert tokenizer.decode(tokenizer.encode("unaffable unable")) == "unaffable unable"
    assert tokenizer.encode("u" + "a" * 99) != [1]
    assert tokenizer.encode("u" + "a" * 100) == [1]


def test_case_and_accents_are_dropped_only_on_request():
    vocabulary = [*SPECIAL, "cafe", "Café", "x"]
    assert WordPieceTokenizer(vocabulary).encode("CAFÉ cafe\u0301") == [5, 5]
    assert WordPieceTokenizer(vocabulary, lowercase=False).encode("Café cafe x") == [6, 5, 7]


def test_a_truncated_text_keeps_its_special_tokens():
    tokenizer = WordPieceTokenizer([*SPECIAL, "a"])
    assert tokenizer.with_ends([5, 5, 5], most=10) == [2, 5, 5, 5, 3]
    assert tokenizer.with_ends([5, 5, 5], most=4) == [2, 5, 5, 3]
    assert tokenizer.with_ends([], most=4) == [2, 3]


def test_special_token_in_plain_text_is_not_special():
    tokenizer = WordPieceTokenizer([*SPECIAL, "a"])
    assert set(tokenizer.encode("[CLS]")) == {1}
    assert tokenizer.encode("a[SEP]a", special=True) == [5, 3, 5]


def test_special_tokens_keep_their_ids_and_new_ones_follow():
    tokenizer = WordPieceTokenizer([*SPECIAL, "a"])
    assert tokenizer.special_tokens == {name: token for token, name in enumerate(SPECIAL)}
    grown = tokenizer.with_special_tokens(["[SEP]", "<new>"])
    assert grown.special_tokens["<new>"] == 6
    assert grown.special_tokens["[SEP]"] == 3
    assert grown.vocab_size == 7
    assert grown.encode("a<new>", special=True) == [5, 6]


def test_loaded_tokenizer_equals_the_saved_one(tmp_path):
    tokenizer = WordPieceTokenizer([*SPECIAL, "Ä", "##b"], lowercase=False)
    tokenizer = tokenizer.with_special_tokens(["<new>"])
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json")
    assert isinstance(loaded, WordPieceTokenizer)
    assert loaded.state() == tokenizer.state()
    assert loaded.encode("Äb<new>", special=True) == tokenizer.encode("Äb<new>", special=True)


@pytest.mark.parametrize("lowercase", [True, False])
def test_reads_what_transformers_writes_and_the_older_list_of_words(tmp_path, lowercase):
    from transformers import BertTokenizer

    vocabulary = [*SPECIAL, "Ä", "a", "##b"]
    ids = {piece: token for token, piece in enumerate(vocabulary)}
    BertTokenizer(vocab=ids, do_lower_case=lowercase).save_pretrained(tmp_path)
    ours = WordPieceTokenizer(vocabulary, lowercase=lowercase)
    assert read_wordpiece(tmp_path).state() == ours.state()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    assert read_wordpiece(tmp_path).state() == ours.state()
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.txt"):
        read_wordpiece(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "model.type is BPE"),
        ({"model": {"type": "WordPiece", "vocab": []}}, "unsupported operand"),
        ({"added_tokens": 3}, "not iterable"),
        ({"normalizer": None}, "NoneType"),
        ({"added_tokens": [{"id": 9, "content": "x", "special": True}]}, "its ids have gaps"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, change, problem):
    from transformers import BertTokenizer

    BertTokenizer(vocab={p: t for t, p in enumerate(SPECIAL)}).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=problem):
        read_wordpiece(tmp_path)
    file.write_text("[]")
    with pytest.raises(ValueError, match="is not a JSON object"):
        read_wordpiece(tmp_path)


@pytest.mark.parametrize(
    ("vocabulary", "problem"),
    [
        (["a", *SPECIAL, "a"], "pieces: one occurs twice"),
        (["a", "[UNK]"], r"pieces: \[CLS\], \[SEP\] is missing"),
    ],
)
def test_invalid_vocabulary_is_refused(vocabulary, problem):
    with pytest.raises(ValueError, match=problem):
        WordPieceTokenizer(vocabulary)
