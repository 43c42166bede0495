"""Published corpora, read by the `datasets` library (an optional extra)."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from llm import network
from llm.config.texts import one_or_several
from llm.data.corpora.base import DocumentPiece, Source, join_pieces
from llm.data.errors import DataError
from llm.data.optional_library import import_optional
from llm.data.paths import SAVED

# Timeout without a new byte on disk, in seconds: long, because downloads of file lists write none.
PERIOD = 300.0
ROWS = 1000  # rows read at a time: one at a time is many times slower


class HuggingFaceDataset(Source):
    """A split of a dataset that `datasets` downloads, caches and reads through a memory map.

    Args:
        path: the name of a dataset on the hub; a local folder, also one of `save_to_disk`; a local Parquet
            file; or a format such as `json` or `text`.
        name: the configuration of the dataset.
        split: the split of the dataset.
        data_files: the files, if path is a format.
        text_field: the column of the text.
        document_start: a regular expression that matches the first row of each document; by default each row is
            a document.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        *,
        split: str = "train",
        data_files: str | Sequence[str] | None = None,
        text_field: str = "text",
        document_start: str | None = None,
    ) -> None:
        self.path, self.configuration, self.split = path, name, split
        self.data_files, self.text_field = data_files, text_field
        self.document_start = document_start
        self.name = " ".join(part for part in (path, name, split) if part)

    @cached_property
    def dataset(self) -> Any:
        """The rows of the text column.

        Raises:
            DataError: the library is missing, or the dataset, split or column does not exist.
        """
        library = import_optional("datasets", library="datasets", extra="datasets", user=self.name)
        try:
            dataset = self._load(library)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{self.name}: cannot be loaded ({' '.join(str(error).split())}); check its name and the network"
            ) from error
        if self.text_field not in dataset.column_names:
            raise DataError(
                f"{self.name}: has no column {self.text_field!r}; set text_field to one of "
                f"{', '.join(dataset.column_names)}"
            )
        return dataset.select_columns(self.text_field)

    def _load(self, library: Any) -> Any:
        local = Path(self.path).expanduser()
        if local.suffix.lower() == ".parquet" and local.is_file():
            return library.load_dataset("parquet", split=self.split, data_files=str(local))
        if any((local / name).is_file() for name in SAVED):
            saved = library.load_from_disk(str(local))
            return saved[self.split] if isinstance(saved, dict) else saved
        settings = library.config
        caches = (constants.HF_HUB_CACHE, constants.HF_XET_CACHE, settings.HF_DATASETS_CACHE)
        with self._offline_if_required(settings):
            return network.run_download(
                lambda: library.load_dataset(
                    self.path, self.configuration, split=self.split, data_files=self.data_files
                ),
                *map(Path, caches),
                seconds=PERIOD,
            )

    @contextmanager
    def _offline_if_required(self, settings: Any) -> Iterator[None]:
        """Restrict the library to its cache if downloads are not allowed.

        Raises:
            DataError: the path or a file is an address on the network.
        """
        if not network.is_offline():
            yield
            return
        files = self.data_files or ()
        for file in (self.path, *one_or_several(files)):
            if "://" in file and (refusal := network.refusal(file)):
                raise DataError(f"{refusal}; name a file of your own with test_path=")
        before = settings.HF_HUB_OFFLINE
        settings.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            settings.HF_HUB_OFFLINE = before

    def documents(self) -> Iterator[str]:
        """Yield the documents that are not empty."""
        return (document for document in join_pieces(self._rows()) if document.strip())

    def fingerprint(self) -> str:
        """Return the fingerprint of `datasets` for the rows, and the settings that join them."""
        return f"{self.name} {self.text_field} {self.document_start} {self.dataset._fingerprint}"

    def _rows(self) -> Iterator[DocumentPiece]:
        """Yield the rows, each with whether its document ends."""
        first = re.compile(self.document_start or "")
        batches = self.dataset.iter(batch_size=ROWS)
        rows = chain.from_iterable(batch[self.text_field] for batch in batches)
        for row, following in pairwise(chain(rows, [None])):
            yield DocumentPiece(row, ends=following is None or bool(first.match(following)))
