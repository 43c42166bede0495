"""Likelihood of a text of any length under a language model."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from llm.data.corpora.preprocessing import Preprocessing, preprocess
from llm.data.corpora.text_files import TextFiles
from llm.data.corpora.token_file import TokenFile, token_dtype
from llm.data.corpora.tokenization import TokenFileStats, tokenize
from llm.data.corpora.windows import ValidationWindows
from llm.data.errors import DataError
from llm.data.sampler import ValidationSampler
from llm.evaluation.perplexity import Perplexity
from llm.terminal.bars import progress_bar
from llm.tokenizers.base import Tokenizer

TOKENS_AT_ONCE = 4096  # through the model
LOGITS_AT_ONCE = 512  # rows of V logits: 100 MB for a vocabulary of 50,000


class TextResult(NamedTuple):
    """The metrics of a language model on a text.

    Attributes:
        description: the text in one line.
        metrics: `loss` in nats per token, `perplexity`, `bits_per_byte`.
    """

    description: str
    metrics: dict[str, float]


def measure_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    files: TextFiles,
    preprocessing: Sequence[Preprocessing] = (),
) -> TextResult:
    """Measure a language model on the text of files.

    Tokenizes the text to a temporary file and reads it in windows of the model's context, so memory does not grow with
    its length. Windows do not overlap: every token except the first is predicted once, from those before it in its
    window.

    Args:
        model: a language model with `hidden_states`, `head` and `context_length`.
        tokenizer: the tokenizer of the model. The tokens that it puts before a text precede every window and are not
            predicted.
        files: the documents.
        preprocessing: the steps of the model's training text.

    Raises:
        DataError: the text cannot be read or encoded, or has fewer than two tokens.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "text.bin"
        part = _write(path, tokenizer, files=files, preprocessing=preprocessing)
        file = TokenFile(path, token_dtype(tokenizer.vocab_size))
        device = cast(Any, model).head.weight.device
        metric = Perplexity(part.bytes / part.tokens).to(device)
        _measure(model, file, begin=tokenizer.ends[0], metric=metric)
    description = (
        f"{files.name}: {part.documents:,} documents, {part.tokens:,} tokens, "
        f"{part.bytes / part.tokens:.2f} bytes a token"
    )
    return TextResult(description, metric.compute())


def _write(
    path: Path, tokenizer: Tokenizer, *, files: TextFiles, preprocessing: Sequence[Preprocessing]
) -> TokenFileStats:
    ends = (piece for piece in preprocess(files.pieces(), preprocessing) if piece.ends)
    several = len(list(islice(ends, 2))) == 2
    separator = tokenizer.end_of_text if several else None  # as in training
    try:
        documents = preprocess(files.pieces(), preprocessing)
        part = tokenize(documents, tokenizer, path=path, separator=separator)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{files.name}: {error}") from error
    if part.tokens < 2:
        raise DataError(
            f"{files.name}: contains {part.tokens} tokens, and measuring needs 2 or more; use a longer text"
        )
    return part


@torch.inference_mode()
def _measure(model: Any, file: TokenFile, *, begin: Sequence[int], metric: Perplexity) -> None:
    length = min(model.context_length - len(begin), len(file) - 1)
    windows = ValidationWindows(file, length)
    batches = ValidationSampler(len(windows), max(1, TOKENS_AT_ONCE // length))
    device = metric.device
    with progress_bar() as bar:
        for numbers in bar.track(batches, total=len(batches), description="measuring"):
            batch = {name: value.to(device) for name, value in windows[numbers].items()}
            before = torch.tensor(begin, dtype=torch.long, device=device)
            tokens = torch.cat([before.expand(len(numbers), -1), batch["tokens"]], dim=1)
            # (B, begin + T, C) to rows of C, because the logits of all at once take too much memory
            states = model.hidden_states(tokens)[:, len(begin) :].flatten(0, 1)
            targets = batch["targets"].flatten()
            pieces = zip(states.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
            for rows, wanted in pieces:
                metric.update(model.head(rows)[None], wanted[None])
