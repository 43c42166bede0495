"""A corpus as a cached folder of token files, made from a source and a tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from llm.data import cache_folder, data_fingerprint
from llm.data.corpora.base import DocumentPiece, Source
from llm.data.corpora.preprocessing import Preprocessing, preprocess
from llm.data.corpora.token_cache import ensure_written, write_metadata
from llm.data.corpora.token_file import token_dtype
from llm.data.corpora.tokenization import cut_documents, tokenize
from llm.data.errors import DataError
from llm.data.split import Documents, Split, published_split, split_corpus
from llm.terminal.bars import progress_bar
from llm.tokenizers import char
from llm.tokenizers.base import TokenizerSpec, fit

VERSION = 2  # of the files written here; increase it to make older cached files unused
# A character tokenizer cannot encode new characters, so it is fitted to the whole text, as in nanoGPT. This reveals
# only which characters the held-out text has.
FITTED_TO_ALL_TEXT = (char.train_char,)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The settings that determine the tokens of both parts of a corpus.

    Attributes:
        source: the source of the documents.
        tokenizer: a tokenizer, or a function that trains one on the training part.
        preprocessing: steps applied in order to each document.
        validation_fraction: share of the characters held out.
        seed: seed of the draw of held-out documents, if there are many documents.
        validation: a separate source of the held-out part, such as a published one.
    """

    source: Source
    tokenizer: TokenizerSpec
    preprocessing: Sequence[Preprocessing] = ()
    validation_fraction: float = 0.1
    seed: int = 0
    validation: Source | None = None

    @cached_property
    def settings(self) -> dict[str, object]:
        """The settings that the token files depend on, as plain data."""
        settings: dict[str, object] = {
            "version": VERSION,
            "source": self.source.fingerprint(),
            "tokenizer": data_fingerprint.of_tokenizer(self.tokenizer),
            "preprocessing": [step.fingerprint() for step in self.preprocessing],
        }
        if self.validation:
            return {**settings, "validation": self.validation.fingerprint()}
        return {**settings, "validation_fraction": self.validation_fraction, "seed": self.seed}

    def held_out(self, metadata: Mapping[str, Any]) -> str:
        """Return a hash of the validation part that does not depend on the tokenizer.

        The seed is included only if documents are drawn.

        Args:
            metadata: the metadata that `write` has written.
        """
        apart = ("version", "tokenizer", *(() if metadata["is_drawn"] else ("seed",)))
        marks = {name: value for name, value in self.settings.items() if name not in apart}
        return data_fingerprint.of_settings({**marks, "bytes": metadata["validation"]["bytes"]})

    def folder(self) -> Path:
        """Return the folder of `train.bin`, `validation.bin`, `tokenizer.json` and `metadata.json`; write it if needed.

        Raises:
            DataError: the text cannot be read, or the tokenizer cannot be trained or cannot encode it.
        """
        try:
            return ensure_written(self.path, self.write)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{self.source.name}: {error}") from error

    @property
    def path(self) -> Path:
        """Path of the folder, which need not exist yet."""
        return cache_folder.writable_folder("tokens") / data_fingerprint.of_settings(self.settings)

    def write(self, folder: Path) -> None:
        """Train the tokenizer, tokenize both parts and write everything to an empty folder."""
        if self.validation:
            parts = published_split(self.source, self.validation)
        else:
            parts = split_corpus(self.source, self.validation_fraction, seed=self.seed)
        tokenizer = fit(self.tokenizer, self._texts_to_fit(parts))
        tokenizer.save(folder / "tokenizer.json")
        separator = tokenizer.end_of_text if parts.separated else None
        written = {}
        with progress_bar() as bar:
            task = bar.add_task(f"tokenizing {self.source.name}", total=parts.characters)
            for name, documents in [("train", parts.train), ("validation", parts.validation)]:
                part = tokenize(
                    self._preprocessed(documents),
                    tokenizer,
                    path=folder / f"{name}.bin",
                    separator=separator,
                    advance=partial(bar.advance, task),
                )
                written[name] = asdict(part)
        metadata = {
            "source": self.source.name,
            "held_out": parts.held_out,
            "is_drawn": parts.is_drawn,
            "settings": self.settings,
            "dtype": token_dtype(tokenizer.vocab_size).name,
            "invalid_bytes": self.source.invalid_bytes,
            "tokenizer_sha256": data_fingerprint.digest((folder / "tokenizer.json").read_bytes()),
        }
        write_metadata(folder, metadata | written)

    def _texts_to_fit(self, parts: Split) -> Iterator[str]:
        """Return the training part, or both parts for FITTED_TO_ALL_TEXT, cut between words."""
        texts = self._preprocessed(parts.train)
        if getattr(self.tokenizer, "func", self.tokenizer) in FITTED_TO_ALL_TEXT:
            texts = chain(texts, self._preprocessed(parts.validation))
        return (text for text, _ in cut_documents(texts))

    def _preprocessed(self, documents: Documents) -> Iterator[DocumentPiece]:
        return preprocess(documents(), self.preprocessing)
