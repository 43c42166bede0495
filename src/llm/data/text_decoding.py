"""Text of files: decompressed, and decoded by byte-order mark or a given encoding."""

import codecs
import gzip
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import IncrementalNewlineDecoder
from pathlib import Path

from llm.data.errors import DataError

CHUNK = 1 << 20  # bytes decoded at a time
MARK = "\udc80"  # replaces an undecodable byte until it is counted
# UTF-32 first: its mark begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
# First bytes of files that are not text.
SIGNATURES = {
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a ZIP archive, as .docx, .xlsx, .epub and .npz files are",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document",
    b"{\\rtf": "an RTF document",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\0": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x7fELF": "a program",
    b"\x1f\x8b": "a gzip archive whose name does not end in .gz",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"(\xb5/\xfd": "a Zstandard archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
}
TABLES = ("a Parquet file", "an Arrow file")
CONVERT = "convert it to .txt, .csv or .jsonl, or leave it out"

codecs.register_error("llm.mark", lambda error: (MARK * (error.end - error.start), error.end))  # pyright: ignore


def suffix(file: Path) -> str:
    """Return the suffix of a file's format in lower case: `.json` of `A.JSON.gz`."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read_chunks(
    file: Path,
    encoding: str | None = None,
    *,
    count: Callable[[int], None] = lambda invalid: None,
    nul_advice: str = "name its encoding, as in data.encoding=utf-16-le, or leave the file out",
    advice: str = CONVERT,
    table_advice: str = "",
    translate: bool = True,
) -> Iterator[str]:
    """Yield the text of a file in chunks of about 1 MB.

    A byte-order mark decides the encoding and is removed. Each byte that cannot be decoded becomes U+FFFD.

    Args:
        file: the file; gzipped if its name ends in `.gz`.
        encoding: the encoding of a file without a byte-order mark; None for UTF-8.
        count: called with the number of replaced bytes of each chunk.
        nul_advice: advice in the error for a file with NUL characters.
        advice: advice in the error for a known format that is not text.
        table_advice: text to append to the advice for a Parquet or Arrow file.
        translate: whether all line ends become newlines.

    Raises:
        DataError: the file cannot be read, is damaged or is not text, or the encoding is unknown.
    """
    is_packed = file.suffix.lower() == ".gz"
    with _reading(file), gzip.open(file) if is_packed else file.open("rb") as stream:
        content = stream.read(CHUNK)
        what = next((SIGNATURES[mark] for mark in SIGNATURES if content.startswith(mark)), None)
        if what:
            advice += table_advice if what in TABLES else ""
            raise DataError(f"{file}: is {what}, not text; {advice}")
        mark = next((mark for mark in BYTE_ORDER_MARKS if content.startswith(mark)), None)
        decode = _decoder(
            BYTE_ORDER_MARKS[mark] if mark else encoding or "utf-8", translate=translate
        )
        while content:
            following = stream.read(CHUNK)
            decoded = decode(content, not following)
            text, invalid = re.subn(MARK, "\N{REPLACEMENT CHARACTER}", decoded)
            count(invalid)
            if "\0" in text and not mark:
                raise DataError(
                    f"{file}: has NUL characters, as binary files and UTF-16 text without a byte-order mark do; "
                    f"{nul_advice}"
                )
            yield text
            content = following


def read_decoded_text(file: Path, encoding: str | None = None, *, advice: str = CONVERT) -> str:
    """Return the text of a file as `read_chunks` does; warn if bytes could not be decoded."""
    invalid: list[int] = []
    text = "".join(read_chunks(file, encoding, count=invalid.append, advice=advice))
    warn_invalid(file, sum(invalid), encoding=encoding)
    return text


def split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text, split at line feeds only."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
    if rest:
        yield rest


def warn_invalid(file: Path, invalid: int, *, encoding: str | None) -> None:
    """Warn if bytes of a file were replaced."""
    if invalid:
        warnings.warn(
            f"{file}: {invalid:,} bytes are not {encoding or 'UTF-8'} and were replaced by U+FFFD; "
            "set data.encoding to another encoding, such as cp1252",
            stacklevel=3,
        )


def _decoder(encoding: str, *, translate: bool) -> Callable[[bytes, bool], str]:
    try:
        found = codecs.lookup(encoding)
        if not found._is_text_encoding:  # pyright: ignore[reportAttributeAccessIssue]
            raise LookupError
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        raise DataError(
            f"data.encoding: {encoding!r} is not an encoding that Python knows; use one such as utf-8, utf-16, "
            "cp1252, latin-1, shift_jis or gb18030"
        ) from None
    decoder = codecs.getincrementaldecoder(encoding)("llm.mark")
    return IncrementalNewlineDecoder(decoder, translate).decode


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except gzip.BadGzipFile as error:
        raise DataError(
            f"{file}: is not a gzip file, although its name ends in .gz ({error}); rename it if it is not compressed, "
            "download it again if it is damaged, or leave it out"
        ) from None
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"{file}: is a damaged gzip file ({error}); download it again, or leave it out"
        ) from None
    except UnicodeError as error:
        raise DataError(f"{file}: cannot be decoded ({error}); set data.encoding") from None
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror or error}); name a file that can be read"
        ) from None
