"""Published files: downloaded once, checked by SHA-256, cached."""

import logging
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pooch

from llm import network
from llm.data import cache_folder
from llm.data.corpora.base import Source
from llm.data.errors import DataError
from llm.data.text_decoding import read_chunks
from llm.files import sha256_of_file


@dataclass(eq=False)
class Download(Source):
    """A published text file, read as one document.

    Args:
        url: address of the file, or of a zip archive.
        sha256: SHA-256 of the file, or of the archive's member, in hexadecimal.
        file_name: its name in the cache folder, where it may be put by hand.
        member: name of the file in the zip archive; None if the file itself is published.

    Raises:
        ValueError: the file name is not a plain name.
    """

    url: str
    sha256: str
    file_name: str
    member: str | None = None

    def __post_init__(self) -> None:
        self.name = self.file_name
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"file_name={self.name} is not a plain name; use one without a folder")

    @property
    def is_here(self) -> bool:
        """Whether the file is in the cache, with the right SHA-256."""
        return self._cached.is_file() and sha256_of_file(self._cached) == self.sha256

    @property
    def _cached(self) -> Path:
        return cache_folder.cache_folder() / self.file_name

    def documents(self) -> Iterator[str]:
        """Yield the text of the file."""
        yield "".join(read_chunks(self.file()))

    def fingerprint(self) -> str:
        """Return the SHA-256, which needs no download."""
        return self.sha256

    def file(self) -> Path:
        """Return the path of the file in the cache; download it if needed.

        Raises:
            DataError: the file cannot be downloaded, or its SHA-256 differs.
        """
        if self.is_here:
            return self._cached
        if refusal := network.refusal(self.url):
            raise DataError(
                f"{refusal}; put it at {self._cached} if you trust it, or name a file of your own with test_path="
            )
        path = cache_folder.writable_folder("") / self.file_name
        pooch.get_logger().setLevel(logging.WARNING)  # hide its advice on unknown hashes
        try:
            if self.member is not None:
                return self._download_member(self.member, path)
            return self._download(path, known_hash=f"sha256:{self.sha256}")
        except (ValueError, zipfile.BadZipFile, KeyError):
            raise DataError(
                f"{self.url}: is not the published file (its SHA-256 is not {self.sha256}) and was deleted; "
                f"put the right file at {path}"
            ) from None
        except OSError as error:
            slow = f", {error}" if isinstance(error, TimeoutError) else ""
            raise DataError(
                f"{self.url}: cannot be downloaded ({type(error).__name__}{slow}); download it by other means and put "
                f"it at {path}, or set LLM_CACHE to a folder that has {self.file_name}"
            ) from None

    def _download(self, path: Path, *, known_hash: str | None) -> Path:
        """Download to a path, through a temporary folder beside it.

        Raises:
            OSError: the server does not answer, or is too slow (TimeoutError).
            ValueError: the hash of the file differs.
        """
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as temporary:
            retrieve = partial(
                pooch.retrieve, self.url, known_hash, fname=path.name, path=temporary
            )
            return Path(network.run_download(retrieve, Path(temporary))).replace(path)

    def _download_member(self, member: str, path: Path) -> Path:
        """Download an archive and extract one file. Only the file's hash is checked: archives may be repacked."""
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            archive = self._download(Path(temporary) / "archive.zip", known_hash=None)
            with zipfile.ZipFile(archive) as opened:
                extracted = Path(opened.extract(member, temporary))
            if sha256_of_file(extracted) != self.sha256:
                raise ValueError
            return extracted.replace(path)
