"""Byte-level byte-pair encoding (BPE), as readable code and by fast libraries with the same results.

Training: cut the text into pieces (words with their leading space, numbers, punctuation, white space) and each
piece into bytes; merge the most frequent pair of adjacent tokens into a new token; repeat. Encoding applies the
merges to a piece in the order in which they were learned. No merge crosses the edge of a piece.

Sources: Sennrich et al. 2016, "Neural machine translation of rare words with subword units"; Radford et al.
2019 (GPT-2), section 2.2, for bytes as the alphabet and the pattern of the pieces.
"""

import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import regex
import tiktoken
import tokenizers

from llm.tokenizers.base import END_OF_TEXT, Tokenizer, replace_surrogates
from llm.tokenizers.pieces import cut_between_words

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

Pair = tuple[int, int]
LearnMerges = Callable[[Iterable[str], int, int], list[Pair]]

# GPT-2's pieces. Without them merges would join words, and `dog.`, `dog!` and `dog?` would be three tokens.
# Possessive quantifiers (`++`) match the same text faster, as they never backtrack.
PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Ids 0 to 255 are the bytes, so every text can be encoded. The order is GPT-2's: bytes with a printable Latin-1
# character, then the others.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
BYTES = bytes(PRINTABLE + sorted(set(range(256)) - set(PRINTABLE)))
BYTE_ID = {byte: token for token, byte in enumerate(BYTES)}

# Characters; no written language has a word or a gap nearly this long.
LONG_RUN = 4096

# Characters passed to the Rust trainer at a time: it buffers 256 texts, with 90 bytes of memory per character.
PIECE = 4096


def split_long_runs(text: str) -> Iterator[str]:
    """Yield a text, cut at blocks of 4,096 characters that are all white space or have none.

    A piece of a million characters makes tiktoken's regular expression panic (not an `Exception`) and takes
    quadratic time in tiktoken 0.12 and the Rust trainer.
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
    """Replace each occurrence of `pair` in `ids` by `token`, from left to right: `a a a` becomes `aa a`."""
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
    """Learn merges from scratch: the specification of `learn_merges_fast`.

    Of equally frequent pairs the one with the smaller ids is merged first.

    Args:
        texts: the training texts, read once.
        num_merges: maximum number of merges.
        min_frequency: stop if no pair occurs this often.

    Returns:
        The merged pairs of ids in order; the first merge makes token 256.
    """
    # Text repeats its words, so merge each distinct word once and weight it by its count.
    pieces = Counter(
        piece
        for text in texts
        for block in split_long_runs(replace_surrogates(text))
        for piece in regex.findall(PATTERN, block)
    )
    words = [([BYTE_ID[byte] for byte in piece.encode()], count) for piece, count in pieces.items()]
    # Counting all pairs after each merge would cost vocabulary x corpus. A merge changes only the words with the
    # pair, so keep an index from each pair to the words that have or had it.
    frequency: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (word, count) in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += count
            words_with[pair].add(index)

    merges: list[Pair] = []
    while len(merges) < num_merges and frequency:
        # The rule for ties does not depend on the order of the texts; the Rust trainer uses the same one.
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        if frequency[best] < max(min_frequency, 1):
            break
        token = 256 + len(merges)
        merges.append(best)
        for index in words_with.pop(best):
            word, count = words[index]
            # A merge also changes the neighbouring pairs, so count all pairs of the word again.
            for pair in pairwise(word):
                frequency[pair] -= count
            word = merge_pair(word, best, token=token)
            for pair in pairwise(word):
                frequency[pair] += count
                words_with[pair].add(index)
            words[index] = word, count
    return merges


def learn_merges_fast(texts: Iterable[str], num_merges: int, min_frequency: int) -> list[Pair]:
    """Return the merges of `learn_merges`, computed by the Rust library `tokenizers` on all cores.

    Long texts are passed in pieces, which saves memory and does not change the merges.
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
        for block in split_long_runs(replace_surrogates(text))
        for piece in cut_between_words(block, PIECE)
    )
    model.train_from_iterator(pieces, trainer)
    ids = model.get_vocab()
    return [
        (ids[left], ids[right]) for left, right in json.loads(model.to_str())["model"]["merges"]
    ]


def apply_merges(piece: bytes, tokens: Mapping[Pair, int]) -> list[int]:
    """Encode one piece from scratch: the specification of tiktoken's encoder.

    Args:
        piece: the bytes of a piece of text.
        tokens: the token of each merged pair.
    """
    ids = [BYTE_ID[byte] for byte in piece]
    while len(ids) > 1:
        # The earliest merge, which has the smallest token, first.
        first = min(pairwise(ids), key=lambda pair: tokens.get(pair, math.inf))
        if first not in tokens:
            break
        ids = merge_pair(ids, first, token=tokens[first])
    return ids


def encode_from_scratch(text: str, merges: Sequence[Pair]) -> list[int]:
    """Encode a text from scratch: the specification of `BPETokenizer.encode`."""
    tokens = {pair: 256 + rank for rank, pair in enumerate(merges)}
    return [
        token
        for block in split_long_runs(replace_surrogates(text))
        for piece in regex.findall(PATTERN, block)
        for token in apply_merges(piece.encode(), tokens)
    ]


LARGEST = 2**26  # bytes of all tokens together; those of GPT-2 have 320,000


class BPETokenizer(Tokenizer):
    """A byte-level byte-pair encoding with given merges.

    Ids: 256 bytes in GPT-2's order, a token for each merge in order, then the special tokens.

    Args:
        merges: the pairs of ids to merge, in the order in which they were learned.
        special_tokens: the names of the special tokens.

    Raises:
        ValueError: a merge uses a token that does not exist yet or makes one that exists already; or as in
            `Tokenizer`.
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
        """Return the ids of a text, computed by tiktoken."""
        blocks = [self._encoding.encode_ordinary(block) for block in split_long_runs(text)]
        return blocks[0] if len(blocks) == 1 else [token for block in blocks for token in block]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of several texts, in parallel threads: tiktoken releases Python's global lock."""
        with ThreadPoolExecutor() as threads:
            return list(threads.map(self.encode, texts))


def _tokens(merges: Sequence[Pair]) -> list[bytes]:
    """Return the bytes of every token, after checking the merges."""
    tokens = [bytes([byte]) for byte in BYTES]
    known, total = set(tokens), 0
    for rank, (left, right) in enumerate(merges):
        if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
            raise ValueError(
                f"merges[{rank}]: {left}, {right} uses a token that does not exist yet; use ids below {len(tokens)}"
            )
        token = tokens[left] + tokens[right]
        total += len(token)
        if total > LARGEST:  # a token may double in length: sixty merges could make an exabyte
            raise ValueError(
                f"merges[{rank}]: the tokens have more than {LARGEST:,} bytes in total; use fewer merges"
            )
        if token in known:
            raise ValueError(
                f"merges[{rank}]: {left}, {right} makes {token!r:.60}, which exists already; remove it"
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

    Warn and return a smaller vocabulary if the text has too few pairs to merge.

    Args:
        texts: the training texts, read once, never all in memory.
        vocab_size: number of ids: 256 bytes, the merges, and `<|endoftext|>`.
        min_frequency: minimum count of a pair to be merged.
        learn: learns the merges: `learn_merges_fast`, or the readable `learn_merges`.

    Raises:
        ValueError: `vocab_size` is less than 257, or the texts are empty.
    """
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for 256 bytes and {END_OF_TEXT}; use 257 or more"
        )
    characters = 0

    def counted() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield text

    tokenizer = BPETokenizer(learn(counted(), vocab_size - 257, min_frequency))
    if not characters:
        raise ValueError("the tokenizer's training text is empty; give at least one document")
    if tokenizer.vocab_size < vocab_size:
        warnings.warn(
            f"the training text of {characters:,} characters has pairs for a vocabulary of "
            f"{tokenizer.vocab_size:,}, not of the requested {vocab_size:,}: no other pair occurs "
            f"{min_frequency} times",
            stacklevel=2,
        )
    return tokenizer
