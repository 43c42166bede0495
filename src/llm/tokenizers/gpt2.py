"""GPT-2's tokenizer: byte-pair encoding with the 50,000 merges that OpenAI published."""

from hashlib import sha1

from tiktoken.load import read_file_cached

from llm.tokenizers.bpe import BYTES, PRINTABLE, BPETokenizer, Pair

MERGES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def gpt2() -> BPETokenizer:
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

    After a line with its version, each line names two tokens. A byte is written as its Latin-1 character where
    that is printable, and as the next character from U+0100 on where it is not.
    """
    ids: dict[str, int] = {}
    unprintable = len(PRINTABLE)
    for token, byte in enumerate(BYTES):
        ids[chr(byte) if token < unprintable else chr(0x100 + token - unprintable)] = token
    merges: list[Pair] = []
    for line in published.splitlines()[1:]:
        left, right = line.split(" ")
        merges.append((ids[left], ids[right]))
        ids[left + right] = len(ids)
    return merges
