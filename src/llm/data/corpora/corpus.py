"""From a source and a tokenizer to a folder of token files, made once and found again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from llm.data import data_fingerprint
from llm.data.corpora.base import DocumentPiece, Source
from llm.data.corpora.preprocessing import Preprocessing, preprocessed
from llm.data.corpora.token_cache import cached, is_whole, write_metadata
from llm.data.corpora.token_file import token_dtype
from llm.data.corpora.tokenization import cut_documents, tokenize
from llm.data.errors import DataError
from llm.data.split import Documents, Split, published_split, split_corpus
from llm.terminal.bars import progress_bar
from llm.tokenizers import char
from llm.tokenizers.base import Tokenizer, fit

VERSION = 2  # of the files written here: a new one leaves all older ones unused
# An alphabet has no token for what it lacks, so it is that of the whole text, as nanoGPT has it. It
# tells a model which characters there are and nothing of where they stand.
FITTED_TO_ALL_TEXT = (char.train_char,)
TokenizerSpec = Tokenizer | Callable[[Iterable[str]], Tokenizer]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All that decides which tokens there are, and in which part.

    Attributes:
        source: Where the documents come from.
        tokenizer: A tokenizer, or a function that fits one to the training part.
        preprocessing: Applied in order to each document.
        validation_fraction: Share of the characters held out.
        seed: Decides which documents are held out, where there are many.
        validation: A source of its own for the held-out part, where one is published.
    """

    source: Source
    tokenizer: TokenizerSpec
    preprocessing: Sequence[Preprocessing] = ()
    validation_fraction: float = 0.1
    seed: int = 0
    validation: Source | None = None

    @cached_property
    def settings(self) -> dict[str, object]:
        """What the token files depend on, as plain data, looked up once."""
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
        """A short name of the validation part, whatever the tokenizer.

        The seed is part of it where it draws documents: few are cut at the same places under every seed.

        Args:
            metadata: what `write` has written.
        """
        apart = ("version", "tokenizer", *(() if metadata["is_drawn"] else ("seed",)))
        marks = {name: value for name, value in self.settings.items() if name not in apart}
        return data_fingerprint.of_settings({**marks, "bytes": metadata["validation"]["bytes"]})

    def folder(self, root: Path) -> Path:
        """The folder of `train.bin`, `validation.bin`, `tokenizer.json` and `metadata.json`.

        It is written under `root` if it is not there under this very fingerprint.

        Raises:
            DataError: The text cannot be read, or the tokenizer cannot be fitted or write it.
        """
        try:
            return cached(self._place(root), self.write)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{self.source.name}: {error}") from error

    def is_written(self, root: Path) -> bool:
        """Whether that folder is there already, so that nothing would be fetched or tokenized."""
        return is_whole(self._place(root))

    def _place(self, root: Path) -> Path:
        return root / data_fingerprint.of_settings(self.settings)

    def write(self, folder: Path) -> None:
        """Fit the tokenizer, tokenize both parts and write everything to an empty folder."""
        parts = self._split()
        tokenizer = fit(self.tokenizer, self._texts_to_fit(parts))
        tokenizer.save(folder / "tokenizer.json")
        separator = tokenizer.end_of_text if parts.separated else None
        written = {}
        with progress_bar() as bar:
            task = bar.add_task(f"tokenizing {self.source.name}", total=parts.characters)
            for name, documents in [("train", parts.train), ("validation", parts.validation)]:
                path = folder / f"{name}.bin"
                part = tokenize(
                    self._preprocessed(documents),
                    tokenizer,
                    path=path,
                    separator=separator,
                    advance=lambda characters: bar.advance(task, characters),
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

    def _split(self) -> Split:
        if self.validation:
            return published_split(self.source, self.validation)
        return split_corpus(self.source, self.validation_fraction, seed=self.seed)

    def _texts_to_fit(self, parts: Split) -> Iterator[str]:
        """The training part, cut between words; both parts where a character not seen could not be written."""
        texts = self._preprocessed(parts.train)
        if getattr(self.tokenizer, "func", self.tokenizer) in FITTED_TO_ALL_TEXT:
            texts = chain(texts, self._preprocessed(parts.validation))
        return (text for text, _ in cut_documents(texts))

    def _preprocessed(self, documents: Documents) -> Iterator[DocumentPiece]:
        return preprocessed(documents(), self.preprocessing)
