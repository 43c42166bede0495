"""Published corpora, through the `datasets` library (an optional extra)."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm import network
from llm.data.corpora.base import Source
from llm.data.errors import DataError
from llm.data.paths import SAVED

if TYPE_CHECKING:
    from datasets import Dataset

# Seconds in which something has to arrive; lists of files, which leave no trace, come before the files.
PERIOD = 300.0
ROWS = 1000  # read together: one at a time is many times slower


class HuggingFaceDataset(Source):
    """One split of a dataset, which `datasets` downloads, caches and reads through a memory map.

    Args:
        path: The dataset's name on the hub; a local folder, one that `save_to_disk` wrote among them; a local
            Parquet file; or a format such as `json` or `text`.
        name: Which configuration of it.
        split: Which split of it.
        data_files: The files, where path is a format.
        text_field: The column that holds the text.
        document_start: Where a document is spread over several rows: a regular expression that
            the first row of each matches. By default, each row is a document.
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
    def dataset(self) -> "Dataset":
        """The rows.

        Raises:
            DataError: The library is missing, or finds no such dataset, split or column.
        """
        try:
            import datasets  # noqa: F401
        except ImportError:
            raise DataError(
                f"{self.name}: needs the datasets library: pip install 'llm-hydra[datasets]'"
            ) from None
        try:
            dataset = self._load()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{self.name}: cannot be loaded: {' '.join(str(error).split())}"
            ) from error
        if self.text_field not in dataset.column_names:
            raise DataError(
                f"{self.name}: has no column {self.text_field!r}: choose text_field among "
                f"{', '.join(dataset.column_names)}"
            )
        return dataset.select_columns(self.text_field)

    def _load(self) -> "Dataset":
        from datasets import config as settings
        from datasets import load_dataset, load_from_disk
        from huggingface_hub import constants

        place = Path(self.path).expanduser()
        if place.suffix.lower() == ".parquet" and place.is_file():
            return load_dataset("parquet", split=self.split, data_files=str(place))
        if any((place / name).is_file() for name in SAVED):
            saved = load_from_disk(str(place))
            return saved[self.split] if isinstance(saved, dict) else saved
        with self._as_allowed():
            load = partial(load_dataset, self.path, self.configuration, split=self.split)
            caches = (constants.HF_HUB_CACHE, constants.HF_XET_CACHE, settings.HF_DATASETS_CACHE)
            return network.downloaded(
                partial(load, data_files=self.data_files), *map(Path, caches), seconds=PERIOD
            )

    @contextmanager
    def _as_allowed(self) -> Iterator[None]:
        """Load from the library's cache alone where nothing may be fetched.

        Raises:
            DataError: the files stand on the network.
        """
        from datasets import config as settings

        if not network.is_offline():
            yield
            return
        files = self.data_files or ()
        for file in (self.path, *([files] if isinstance(files, str) else files)):
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
        documents = self._joined(self.document_start) if self.document_start else self._rows()
        return (document for document in documents if document.strip())

    def fingerprint(self) -> str:
        """The one that `datasets` gives to the rows, and how they are joined."""
        return f"{self.name} {self.text_field} {self.document_start} {self.dataset._fingerprint}"

    def _rows(self) -> Iterator[str]:
        for batch in self.dataset.iter(batch_size=ROWS):
            yield from batch[self.text_field]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _joined(self, start: str) -> Iterator[str]:
        document: list[str] = []
        for row in self._rows():
            if re.match(start, row) and document:
                yield "".join(document)
                document = []
            document.append(row)
        yield "".join(document)
