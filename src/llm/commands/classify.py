"""`llm classify`: classify each line of text with a trained classifier."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from omegaconf import OmegaConf

from llm.config.base import Command
from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.config.rules import Rule
from llm.data.column import Column
from llm.data.errors import DataError
from llm.data.examples.collation import pad_with_mask
from llm.generation.model_loading import (
    autocast,
    place_model,
    use_hardware,
    weights_are_trained,
)
from llm.hardware import Hardware
from llm.models.classifier import Classifier
from llm.nn.init import SkipInit
from llm.terminal import shell
from llm.terminal.console import printable
from llm.tokenizers.base import Tokenizer
from llm.weights.base import Weights
from llm.weights.run import RunWeights


class Prediction(NamedTuple):
    """The most likely class of a text, and its probability."""

    label: str
    probability: float


def names_one_source(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if both a text and a file are given, or if the text is blank."""
    text, file = config.get("text"), config.get("file")
    if text is not None and file is not None:
        yield "text, file: both are given; leave one out"
    elif isinstance(text, str) and not text.strip():
        yield "text: is blank; pass a text to classify"


@dataclass(frozen=True, kw_only=True)
class Classify(Command):
    """Print the class of each text.

    A file of rows (CSV, TSV, JSON, JSON lines) has one text per row, any other file one text per line. They are
    classified in batches, lines of standard input one by one as they arrive. Blank texts are skipped.
    """

    text: str | None
    file: str | None
    batch_size: int
    rows: Column
    hardware: Hardware
    weights: Weights

    rules: ClassVar[Sequence[Rule]] = (weights_are_trained, names_one_source)

    def run(self) -> None:
        """Print `label<TAB>probability<TAB>text` for each text.

        Raises:
            ConfigError: the run is not a classifier, or a text cannot be encoded.
        """
        weights, hardware = self.weights, use_hardware(self.hardware)
        classes = trained_classes(weights)
        with SkipInit():
            model = place_model(weights.model(), hardware)
        tokenizer = weights.tokenizer()
        assert isinstance(model, Classifier)
        size = 1 if self.file is None else self.batch_size
        lines = self.texts(weights)
        with config_errors_at("text"), autocast(hardware):
            while texts := list(islice(lines, size)):
                predictions = predict(model, tokenizer, classes, texts)
                for text, predicted in zip(texts, predictions, strict=True):
                    line = " ".join(text.splitlines())
                    row = f"{predicted.label}\t{predicted.probability:.4f}\t{line}"
                    print(printable(row), flush=True)

    def texts(self, weights: Weights) -> Iterator[str]:
        """Yield the text, the texts of the file, or the lines of standard input.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.text is not None:
            yield " ".join(self.text.splitlines())
            return
        if self.file is None:
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
            return
        theirs: Any = OmegaConf.to_container(weights.config.data)
        try:
            yield from self.rows.with_defaults(theirs).texts(self.file)
        except DataError as error:
            raise ConfigError(f"file: {error}") from None


def trained_classes(weights: Weights) -> Sequence[str]:
    """Return the names of a run's classes.

    Raises:
        ConfigError: the run is not a classifier.
    """
    target = OmegaConf.select(weights.config, "task.model._target_")
    classes = OmegaConf.select(weights.config, "data.classes")
    if target != f"{Classifier.__module__}.{Classifier.__name__}" or not classes:
        option = "run" if isinstance(weights, RunWeights) else "…"
        train = shell.command_line(
            *(shell.program(), "train", "experiment=classify", f"weights={option}"),
            f"weights.path={weights.path}",
        )
        raise ConfigError(
            f"weights.path: {weights.path} is not a classifier; train one from it with {train} data.path=…"
        )
    return list(classes)


@torch.inference_mode()
def predict(
    model: Classifier, tokenizer: Tokenizer, classes: Sequence[str], texts: Sequence[str]
) -> list[Prediction]:
    """Return the most likely class of each text. Tokens beyond the context length are ignored.

    Raises:
        ValueError: a text cannot be encoded, or has no token.
    """
    rows = [tokenizer.encode(text) for text in texts]
    if [] in rows:
        raise ValueError(f"the tokenizer encodes {texts[rows.index([])]!r} to no token")
    batch = pad_with_mask([{"tokens": tokenizer.with_ends(r, model.context_length)} for r in rows])
    device = next(model.parameters()).device
    logits = model(batch["tokens"].to(device), batch["attention_mask"].to(device))
    probabilities, labels = logits.float().softmax(dim=-1).max(dim=-1)
    return [
        Prediction(classes[int(label)], float(probability))
        for label, probability in zip(labels, probabilities, strict=True)
    ]
