"""Published files: downloaded once, checked by SHA-256, cached."""

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
    """A published text file, read as one document.

    Args:
        url: address of the file, or of a zip archive.
        sha256: SHA-256 of the file, in hexadecimal.
        file_name: its name in the cache folder; to work offline, put it there by hand.
        member: name of the file in the zip archive; None if the file itself is published.

    Raises:
        ValueError: the file name is not a plain name.
    """

    def __init__(self, url: str, *, sha256: str, file_name: str, member: str | None = None) -> None:
        if not file_name or Path(file_name).name != file_name or file_name.startswith("."):
            raise ValueError(
                f"file_name={file_name} is not a plain name; use a name without a folder"
            )
        self.url, self.sha256, self.file_name, self.member = url, sha256, file_name, member
        self.name = file_name

    def file(self) -> Path:
        """Return the path of the file; download it if needed."""
        return fetch(self.url, sha256=self.sha256, file_name=self.file_name, member=self.member)

    @property
    def is_here(self) -> bool:
        """Whether the file is in the cache."""
        return is_cached(self.sha256, self.file_name)

    def documents(self) -> Iterator[str]:
        """Yield the text of the file."""
        yield "".join(chunks(self.file()))

    def fingerprint(self) -> str:
        """Return the SHA-256, which needs no download."""
        return self.sha256


def fetch(url: str, *, sha256: str, file_name: str, member: str | None = None) -> Path:
    """Return the path of a published file in the cache; download it if needed.

    Args:
        url: address of the file, or of a zip archive.
        sha256: SHA-256 of the file, or of the archive's member, in hexadecimal.
        file_name: its name in the cache folder.
        member: name of the file in the zip archive; None if the file itself is published.

    Raises:
        DataError: the file cannot be downloaded, or its SHA-256 differs.
    """
    there = cache_folder.cache_folder() / file_name
    if is_cached(sha256, file_name):
        return there
    if refusal := network.refusal(url):
        raise DataError(
            f"{refusal}; put it at {there} if you trust it, or name a file of your own with test_path="
        )
    folder = cache_folder.writable_folder("")
    pooch.get_logger().setLevel(logging.WARNING)  # hide its advice on unknown hashes
    try:
        if member is not None:
            return _fetch_member(url, sha256=sha256, path=folder / file_name, member=member)
        return _retrieved(url, known_hash=f"sha256:{sha256}", path=folder / file_name)
    except (ValueError, zipfile.BadZipFile, KeyError):
        raise DataError(
            f"{url}: is not the published file (its SHA-256 is not {sha256}) and was deleted; "
            f"put the right file at {folder / file_name}"
        ) from None
    except OSError as error:
        slow = f", {error}" if isinstance(error, TimeoutError) else ""
        raise DataError(
            f"{url}: cannot be downloaded ({type(error).__name__}{slow}); download it by other means and put it "
            f"at {folder / file_name}, or set LLM_CACHE to a folder that has {file_name}"
        ) from None


def is_cached(sha256: str, file_name: str) -> bool:
    """Return whether the cache has the file, with the right SHA-256."""
    there = cache_folder.cache_folder() / file_name
    return there.is_file() and pooch.file_hash(str(there)) == sha256


def _retrieved(url: str, *, known_hash: str | None, path: Path) -> Path:
    """Download a file to a path, through a temporary folder in the same folder.

    Raises:
        OSError: the server does not answer, or is too slow (TimeoutError).
        ValueError: the hash of the file differs.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as temporary:
        retrieve = partial(pooch.retrieve, url, known_hash, fname=path.name, path=temporary)
        return Path(network.downloaded(retrieve, Path(temporary))).replace(path)


def _fetch_member(url: str, *, sha256: str, path: Path, member: str) -> Path:
    """Download an archive and extract one file; only that file's hash is checked, as archives may be repacked."""
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        archive = _retrieved(url, known_hash=None, path=Path(temporary) / "archive.zip")
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(member)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError
        unpacked = Path(temporary) / "member"
        unpacked.write_bytes(content)
        return unpacked.replace(path)
