"""GPT-2's tokenizer: byte-pair encoding with the 50,000 merges that OpenAI published."""

from collections.abc import Iterable, Sequence
from hashlib import sha1

from tiktoken.load import read_file_cached

from llm.tokenizers.bpe import BYTES, PRINTABLE, BPETokenizer, Pair

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
# The characters that stand for the bytes in vocabulary files, in the order of the ids: the Latin-1 character if it
# is printable, otherwise the next free character from U+0100 on.
CHARACTERS = "".join(
    chr(byte if token < len(PRINTABLE) else 0x100 + token - len(PRINTABLE))
    for token, byte in enumerate(BYTES)
)
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def gpt2_tokenizer() -> BPETokenizer:
    """Return GPT-2's tokenizer: 50,257 ids, of which `<|endoftext|>` is the last.

    On first use tiktoken downloads the merges, checks their hash, and stores the file in the folder of the
    environment variable TIKTOKEN_CACHE_DIR.

    Raises:
        FileNotFoundError: the file is not cached and cannot be downloaded.
    """
    try:
        published = read_file_cached(MERGES, SHA256).decode("utf-8")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"GPT-2's merges: cannot be downloaded ({type(error).__name__}); save {MERGES} as "
            f"{sha1(MERGES.encode()).hexdigest()} in a folder and set TIKTOKEN_CACHE_DIR to that folder"
        ) from error
    return BPETokenizer(merge_ids(split_merges(published)))


def split_merges(published: str) -> list[list[str]]:
    """Return the merges of a `vocab.bpe` file: two tokens per line, after a line with the version."""
    return [line.split(" ") for line in published.splitlines()[1:]]


def merge_ids(merges: Iterable[Sequence[str]]) -> list[Pair]:
    """Return merges of tokens, written in `CHARACTERS`, as pairs of ids.

    Raises:
        ValueError: a merge does not consist of two known tokens.
    """
    ids = {character: token for token, character in enumerate(CHARACTERS)}
    pairs: list[Pair] = []
    for merge in merges:
        if len(merge) != 2 or not (merge[0] in ids and merge[1] in ids):
            raise ValueError(
                f"merge {len(pairs)}: {merge} is not a pair of known tokens; download the file again"
            )
        pairs.append((ids[merge[0]], ids[merge[1]]))
        ids["".join(merge)] = len(ids)
    return pairs
