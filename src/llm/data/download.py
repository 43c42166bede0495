"""Published files: fetched once, checked by their SHA-256, kept in the cache."""

import hashlib
import logging
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pooch

from llm import network
from llm.data import cache_folder
from llm.data.corpora.base import Source
from llm.data.errors import DataError
from llm.data.text_decoding import chunks


class Download(Source):
    """One published text file, which is one document.

    Args:
        url: Where it is published.
        sha256: Of the file, in hexadecimal.
        file_name: What it is called in the cache folder; put it there by hand to work offline.
        member: Where a zip archive is published: the name of the file within.

    Raises:
        ValueError: The file name leads out of the cache folder.
    """

    def __init__(self, url: str, *, sha256: str, file_name: str, member: str | None = None) -> None:
        if not file_name or Path(file_name).name != file_name or file_name.startswith("."):
            raise ValueError(
                f"file_name={file_name}: give the plain name of a file, without a folder"
            )
        self.url, self.sha256, self.file_name, self.member = url, sha256, file_name, member
        self.name = file_name

    def file(self) -> Path:
        """The file on this machine, fetched if need be."""
        return fetch(self.url, sha256=self.sha256, file_name=self.file_name, member=self.member)

    @property
    def is_here(self) -> bool:
        """Whether the file is in the cache."""
        return is_cached(self.sha256, self.file_name)

    def documents(self) -> Iterator[str]:
        """Yield the text."""
        yield "".join(chunks(self.file()))

    def fingerprint(self) -> str:
        """The hash says it all, without the file."""
        return self.sha256


def fetch(url: str, *, sha256: str, file_name: str, member: str | None = None) -> Path:
    """Return the path of a published file, downloaded into the cache if it is not there.

    Args:
        url: Where it is published.
        sha256: Of the file, in hexadecimal; of the member, where an archive is published.
        file_name: What it is called in the cache folder.
        member: The name of the file within a published zip archive.

    Raises:
        DataError: It cannot be fetched, or is not the file that was published.
    """
    there = cache_folder.cache_folder() / file_name
    if is_cached(sha256, file_name):
        return there
    if refusal := network.refusal(url):
        raise DataError(
            f"{refusal}: put it at {there} if you trust it, or name a file of your own with test_path="
        )
    folder = cache_folder.writable_folder("")
    pooch.get_logger().setLevel(logging.WARNING)  # its advice on unknown hashes is not for us
    try:
        if member is not None:
            return _fetch_member(url, sha256=sha256, path=folder / file_name, member=member)
        return _retrieved(url, known_hash=f"sha256:{sha256}", path=folder / file_name)
    except (ValueError, zipfile.BadZipFile, KeyError):
        raise DataError(
            f"{url} is not the file that was published (its SHA-256 is not {sha256}): it was not "
            f"kept; put the right file at {folder / file_name}"
        ) from None
    except OSError as error:
        slow = f", {error}" if isinstance(error, TimeoutError) else ""
        raise DataError(
            f"cannot download {url} ({type(error).__name__}{slow}): fetch it by other means and put it "
            f"at {folder / file_name}, or set LLM_CACHE to a folder that holds {file_name}"
        ) from None


def is_cached(sha256: str, file_name: str) -> bool:
    """Whether the cache holds the file that was published."""
    there = cache_folder.cache_folder() / file_name
    return there.is_file() and pooch.file_hash(str(there)) == sha256


def _retrieved(url: str, *, known_hash: str | None, path: Path) -> Path:
    """Download a file to a path, through a temporary folder beside it.

    Raises:
        OSError: the server does not answer, or is too slow (TimeoutError).
        ValueError: the file has another hash.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as temporary:
        retrieve = partial(pooch.retrieve, url, known_hash, fname=path.name, path=temporary)
        return Path(network.downloaded(retrieve, Path(temporary))).replace(path)


def _fetch_member(url: str, *, sha256: str, path: Path, member: str) -> Path:
    """Keep one file of an archive; the archive itself may be packed anew with other bytes."""
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        archive = _retrieved(url, known_hash=None, path=Path(temporary) / "archive.zip")
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(member)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError
        unpacked = Path(temporary) / "member"
        unpacked.write_bytes(content)
        return unpacked.replace(path)
