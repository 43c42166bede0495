"""The loss of a text counts each token except the first once, in windows, and needs constant memory."""

import math

import pytest
import torch
from torch.nn import functional as F

from llm.data.corpora.text_files import TextFiles
from llm.data.errors import DataError
from llm.evaluation import text_likelihood as measuring
from llm.evaluation.text_likelihood import measure_text
from llm.tokenizers.byte import ByteTokenizer

TEXT = "the cat sat on the mat, and the dog lay under the house. é\n" * 9


class Beginning(ByteTokenizer):
    """A byte tokenizer whose model expects a first token before each text, like Llama's."""

    @property
    def ends(self):
        return [7], []


@pytest.fixture
def model(build):
    return build("size.context_length=50", vocab_size=257).eval()


@pytest.fixture
def files(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    return TextFiles(tmp_path / "text.txt")


def nats(model, window: list[int], first: int) -> list[float]:
    """Return the loss of each token from `first` on, in nats, computed in float64."""
    with torch.inference_mode():
        logits = model(torch.tensor([window[:-1]])).double()
    return F.cross_entropy(
        logits[0, first - 1 :], torch.tensor(window[first:]), reduction="none"
    ).tolist()


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Beginning()])
def test_loss_is_the_mean_over_adjacent_windows(model, files, tokenizer):
    tokens = list(TEXT.encode())
    begin, _ = tokenizer.ends
    length = 50 - len(begin)
    expected = []
    for start in range(0, len(tokens) - 1, length):
        expected += nats(model, [*begin, *tokens[start : start + length + 1]], len(begin) + 1)
    assert len(expected) == len(tokens) - 1
    metrics = measure_text(model, tokenizer, files=files).metrics
    loss = sum(expected) / len(expected)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-6)


def test_a_text_shorter_than_the_context_is_one_window(model, tmp_path):
    (tmp_path / "short.txt").write_text("a cat")
    metrics = measure_text(model, ByteTokenizer(), files=TextFiles(tmp_path / "short.txt")).metrics
    expected = nats(model, list(b"a cat"), 1)
    assert metrics["loss"] == pytest.approx(sum(expected) / 4, rel=1e-6)


def test_documents_end_as_in_training(model, tmp_path):
    """Each of several documents is followed by the end-of-text token; a single document is not."""
    tokenizer = ByteTokenizer()
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "b.txt").write_text("a dog")
    metrics = measure_text(model, tokenizer, files=TextFiles(tmp_path)).metrics
    end = tokenizer.end_of_text
    expected = nats(model, [*b"a cat", end, *b"a dog", end], 1)
    assert metrics["loss"] == pytest.approx(sum(expected) / 11, rel=1e-6)


def test_logits_of_a_long_text_are_computed_in_pieces(model, files, monkeypatch):
    whole = measure_text(model, ByteTokenizer(), files=files).metrics["loss"]
    rows, width = [], model.head.in_features
    monkeypatch.setattr(measuring, "LOGITS_AT_ONCE", 13)
    model.head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].numel() // width))
    assert measure_text(model, ByteTokenizer(), files=files).metrics["loss"] == pytest.approx(whole)
    assert max(rows) == 13


def test_too_little_text_is_refused(model, tmp_path):
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(
        DataError, match=r"short\.txt: contains 1 tokens, and measuring needs 2 or more"
    ):
        measure_text(model, ByteTokenizer(), files=TextFiles(tmp_path / "short.txt"))
