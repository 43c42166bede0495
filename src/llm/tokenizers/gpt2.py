"""GPT-2's tokenizer: byte-pair encoding with the 50,000 merges that OpenAI published."""

from collections.abc import Iterable, Sequence
from hashlib import sha1

from tiktoken.load import read_file_cached

from llm.tokenizers.bpe import BYTES, PRINTABLE, BPETokenizer, Pair

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change

MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
# How the vocabulary's files write the bytes, in the order of their ids: as the Latin-1 character where that is
# printable, and as the next character from U+0100 on where it is not.
CHARACTERS = "".join(
    chr(byte if token < len(PRINTABLE) else 0x100 + token - len(PRINTABLE))
    for token, byte in enumerate(BYTES)
)
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer, 50,257 ids, `<|endoftext|>` the last of them.

    The merges come through tiktoken, which fetches and checks the file on first use and keeps it in
    the folder that the environment variable TIKTOKEN_CACHE_DIR names.

    Raises:
        FileNotFoundError: The file is not in the cache and cannot be fetched.
    """
    try:
        published = read_file_cached(MERGES, SHA256).decode("utf-8")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"cannot fetch GPT-2's merges ({type(error).__name__}): save {MERGES} as "
            f"{sha1(MERGES.encode()).hexdigest()} in a folder and set TIKTOKEN_CACHE_DIR to that folder"
        ) from error
    return BPETokenizer(parse_merges(published))


def parse_merges(published: str) -> list[Pair]:
    """The merges of a `vocab.bpe` file as pairs of ids.

    Raises:
        ValueError: a line does not name two tokens that exist.
    """
    return merge_ids(split_merges(published))


def split_merges(published: str) -> list[list[str]]:
    """The merges of a `vocab.bpe` file: after a line with its version, two tokens a line."""
    return [line.split(" ") for line in published.splitlines()[1:]]


def merge_ids(merges: Iterable[Sequence[str]]) -> list[Pair]:
    """Merges of tokens, written in `CHARACTERS`, as pairs of ids.

    Raises:
        ValueError: a merge does not name two tokens that exist.
    """
    ids = {character: token for token, character in enumerate(CHARACTERS)}
    pairs: list[Pair] = []
    for merge in merges:
        if len(merge) != 2 or not (merge[0] in ids and merge[1] in ids):
            raise ValueError(f"merge {len(pairs)} names no two tokens that exist: {merge}")
        pairs.append((ids[merge[0]], ids[merge[1]]))
        ids["".join(merge)] = len(ids)
    return pairs
