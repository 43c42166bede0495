"""Byte-level byte-pair encoding: written out to be read, and the fast libraries held equal to it.

A text is cut into pieces (words with their leading space, numbers, punctuation, white space). A piece starts
as its bytes; training merges the most frequent pair of neighbours into a new token, again and again; encoding
repeats those merges in the order in which they were learnt.

Sources: Sennrich et al. 2016, "Neural machine translation of rare words with subword units"; Radford et al.
2019 (GPT-2), section 2.2, for bytes as the alphabet and for the pattern of the pieces.
"""

import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import regex
import tiktoken
import tokenizers

from llm.tokenizers.base import END_OF_TEXT, Tokenizer, well_formed
from llm.tokenizers.pieces import cut_between_words

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change

Pair = tuple[int, int]
LearnMerges = Callable[[Iterable[str], int, int], list[Pair]]

# GPT-2's pieces. Quantifiers that give nothing back (`++`) match the same text in less time.
PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Ids 0 to 255 are the bytes in GPT-2's order: those with a printable Latin-1 character, then the others.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
BYTES = bytes(PRINTABLE + sorted(set(range(256)) - set(PRINTABLE)))
BYTE_ID = {byte: token for token, byte in enumerate(BYTES)}

# No written language comes near this many characters on one side of the line between blank and not blank.
LONG_RUN = 4096

# Characters handed to the Rust trainer at a time: it takes in 256 texts at once, and 90 bytes for each of theirs.
PIECE = 4096


def split_long_runs(text: str) -> Iterator[str]:
    """Cut a text within blocks of 4,096 characters that are all white space or have none in them.

    A piece of a million characters takes tiktoken's regular expression down (a panic that is no
    `Exception`), and costs tiktoken 0.12 and the Rust trainer quadratic time. Text without such
    runs comes back whole.
    """
    start = 0
    for block in range(0, len(text) - LONG_RUN + 1, LONG_RUN):
        run = text[block : block + LONG_RUN]
        if run.isspace() or not regex.search(r"\s", run):
            if block > start:
                yield text[start:block]
            start = block
    if start < len(text):
        yield text[start:]


def merge_pair(ids: list[int], pair: Pair, *, token: int) -> list[int]:
    """Replace each occurrence of `pair` in `ids`, from left to right, by `token`."""
    merged: list[int] = []
    position = 0
    while position < len(ids):
        if tuple(ids[position : position + 2]) == pair:
            merged.append(token)
            position += 2
        else:
            merged.append(ids[position])
            position += 1
    return merged


def learn_merges(texts: Iterable[str], num_merges: int, min_frequency: int) -> list[Pair]:
    """Train from scratch: the specification of `learn_merges_fast`.

    Equal pieces are counted once and merged once. The counts of pairs are kept up to date: a merge
    touches only the pieces that hold the pair. Among equally frequent pairs the smaller ids go first.

    Args:
        texts: The training texts, read once.
        num_merges: The most merges to learn.
        min_frequency: Stop when no pair occurs this often.

    Returns:
        The merged pairs of ids in order; the first makes token 256.
    """
    pieces = Counter(
        piece
        for text in texts
        for part in split_long_runs(well_formed(text))
        for piece in regex.findall(PATTERN, part)
    )
    words = [([BYTE_ID[byte] for byte in piece.encode()], count) for piece, count in pieces.items()]
    frequency: Counter[Pair] = Counter()
    # For each pair, the words that hold it or once held it.
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, (word, count) in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += count
            places[pair].add(place)

    merges: list[Pair] = []
    while len(merges) < num_merges and frequency:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        if frequency[best] < max(min_frequency, 1):
            break
        token = 256 + len(merges)
        merges.append(best)
        for place in places.pop(best):
            word, count = words[place]
            for pair in pairwise(word):
                frequency[pair] -= count
            word = merge_pair(word, best, token=token)
            for pair in pairwise(word):
                frequency[pair] += count
                places[pair].add(place)
            words[place] = word, count
    return merges


def learn_merges_fast(texts: Iterable[str], num_merges: int, min_frequency: int) -> list[Pair]:
    """The merges of `learn_merges`, learnt by the Rust library `tokenizers` on all cores.

    Long texts are handed over in pieces: the merges are the same, and memory does not grow with the texts.
    """
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + num_merges,
        min_frequency=min_frequency,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (
        piece
        for text in texts
        for part in split_long_runs(well_formed(text))
        for piece in cut_between_words(part, PIECE)
    )
    model.train_from_iterator(pieces, trainer)
    ids = model.get_vocab()
    return [
        (ids[left], ids[right]) for left, right in json.loads(model.to_str())["model"]["merges"]
    ]


def apply_merges(piece: bytes, tokens: Mapping[Pair, int]) -> list[int]:
    """Encode one piece from scratch: the specification of tiktoken's encoding.

    Args:
        piece: The bytes of a piece of text.
        tokens: The token that each merged pair makes. An earlier merge made a smaller token.
    """
    ids = [BYTE_ID[byte] for byte in piece]
    while len(ids) > 1:
        first = min(pairwise(ids), key=lambda pair: tokens.get(pair, math.inf))
        if first not in tokens:
            break
        ids = merge_pair(ids, first, token=tokens[first])
    return ids


def encode_from_scratch(text: str, merges: Sequence[Pair]) -> list[int]:
    """Encode a text with nothing but the merges: the specification of `BPETokenizer.encode`."""
    tokens = {pair: 256 + rank for rank, pair in enumerate(merges)}
    return [
        token
        for part in split_long_runs(well_formed(text))
        for piece in regex.findall(PATTERN, part)
        for token in apply_merges(piece.encode(), tokens)
    ]


LARGEST = 2**26  # bytes of all tokens together; GPT-2's have 320 thousand


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding by given merges.

    Ids: 256 bytes in GPT-2's order, a token for each merge in order, then the special tokens.

    Args:
        merges: The pairs of ids to merge, in the order in which they were learnt.
        special_tokens: The names of the special tokens.

    Raises:
        ValueError: A merge names a token that does not exist yet, or makes one that exists already;
            a special token is empty or named twice.
    """

    kind = "bpe"

    def __init__(
        self, merges: Sequence[Sequence[int]], special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> None:
        self.merges: list[Pair] = [(left, right) for left, right in merges]
        tokens = _tokens(self.merges)
        super().__init__(tokens, special_tokens)
        self._encoding = tiktoken.Encoding(
            "bpe",
            pat_str=PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={},
        )

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text, by tiktoken."""
        parts = [self._encoding.encode_ordinary(part) for part in split_long_runs(text)]
        return parts[0] if len(parts) == 1 else [token for part in parts for token in part]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of several texts, in parallel: tiktoken works outside Python's global lock."""
        with ThreadPoolExecutor() as threads:
            return list(threads.map(self.encode, texts))

    def state(self) -> dict[str, Any]:
        """The merges and the names of the special tokens."""
        return {"merges": self.merges, "special_tokens": list(self.special_tokens)}


def _tokens(merges: Sequence[Pair]) -> list[bytes]:
    """The bytes of every token that the merges make, checked."""
    tokens = [bytes([byte]) for byte in BYTES]
    known, total = set(tokens), 0
    for rank, (left, right) in enumerate(merges):
        if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
            raise ValueError(f"merges[{rank}] = {left}, {right} names a token that it comes before")
        token = tokens[left] + tokens[right]
        total += len(token)
        if total > LARGEST:  # merges may double: sixty of them would make an exabyte
            raise ValueError(
                f"merges[{rank}] = {left}, {right}: the tokens have more than {LARGEST:,} bytes"
            )
        if token in known:
            raise ValueError(
                f"merges[{rank}] = {left}, {right} makes {token!r:.60}, which exists already"
            )
        tokens.append(token)
        known.add(token)
    return tokens


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    learn: LearnMerges = learn_merges_fast,
) -> BPETokenizer:
    """Learn a tokenizer from texts.

    A text with too few pairs to merge gives a smaller vocabulary than asked, and a warning.

    Args:
        texts: The training texts, one document each; read once, never held together in memory.
        vocab_size: The number of ids wanted: 256 bytes, the merges, and `<|endoftext|>`.
        min_frequency: Merge no pair that occurs less often; a pair that occurs once is no pattern.
        learn: How merges are learnt: `learn_merges_fast`, or `learn_merges`, which can be read.

    Raises:
        ValueError: `vocab_size` is under 257, or there is no text.
    """
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} make 257 at least"
        )
    characters = 0

    def counted() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield text

    tokenizer = BPETokenizer(learn(counted(), vocab_size - 257, min_frequency))
    if not characters:
        raise ValueError("the tokenizer's training text is empty: give it at least one document")
    if tokenizer.vocab_size < vocab_size:
        warnings.warn(
            f"the training text of {characters:,} characters has pairs for a vocabulary of "
            f"{tokenizer.vocab_size:,}, not of the requested {vocab_size:,}: no other pair occurs "
            f"{min_frequency} times",
            stacklevel=2,
        )
    return tokenizer
