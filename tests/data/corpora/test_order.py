"""Contiguous streams of windows: each row continues the one before it, on any number of devices."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm.data.corpora.order import Contiguous
from llm.data.corpora.text import TextDataModule
from llm.data.errors import DataError
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tokenizers.byte import ByteTokenizer

STORY = "".join(f"This is sentence number {i}, and no other is like it.\n" for i in range(100))
LENGTH, BATCH = 16, 4


@pytest.fixture
def make(texts):
    def made(accumulate: int = 1, text: str = STORY, **settings) -> TextDataModule:
        given = {"context_length": LENGTH, "batch_size": BATCH, **settings}
        data = TextDataModule(
            texts(text), ByteTokenizer(), order=Contiguous(accumulate), stride=1, **given
        )
        data.prepare_data()
        data.setup("fit")
        return data

    return made


def on_device(data: TextDataModule, rank: int, world_size: int) -> TextDataModule:
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        distributed_sampler_kwargs={"rank": rank, "num_replicas": world_size},
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return data


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_epoch_reads_adjacent_streams_of_equal_length(make, accumulate):
    """Joined in the order of rows, the windows of an epoch are the text itself, in each of two epochs."""
    data = make(accumulate)
    text = data._training.windows.file.tokens.astype(np.int64)
    streams = BATCH * accumulate
    length = (len(text) - 1) // LENGTH // streams
    assert data.batches_per_epoch == length * accumulate
    batches = list(islice(data.train_dataloader(), 2 * data.batches_per_epoch))
    for epoch in (batches[: len(batches) // 2], batches[len(batches) // 2 :]):
        for name, first in (("tokens", 0), ("targets", 1)):
            # (steps, micro-batches, rows, T) -> (streams, steps · T)
            windows = torch.stack([batch[name] for batch in epoch])
            windows = windows.view(length, streams, LENGTH).movedim(0, 1).flatten(1)
            found = windows.flatten().numpy()
            assert (found == text[first : first + len(found)]).all()
        continues = torch.stack([batch["continues"] for batch in epoch])
        assert not continues[:accumulate].any(), "each epoch starts from the zero state"
        assert continues[accumulate:].all()


def test_what_is_not_read_is_less_than_a_window_per_stream(make):
    data = make()
    left = len(data._training.windows.file.tokens) - 1 - data.train_rows * LENGTH
    assert 0 <= left < BATCH * LENGTH + LENGTH


def test_devices_share_the_rows_of_each_batch(make):
    whole = list(islice(make(2).train_dataloader(), 7))
    for rank in range(2):
        own = islice(on_device(make(2), rank, 2).train_dataloader(), 7)
        for batch, expected in zip(own, whole, strict=True):
            for name, tensor in batch.items():
                assert torch.equal(tensor, expected[name][rank::2]), name


@pytest.mark.parametrize("position", [1, 5, 23, 200])
def test_loader_resumes_at_any_batch(make, position):
    uninterrupted = list(islice(make(3).train_dataloader(), position + 4))[position:]
    data = make(3)
    data.load_state_dict(data.state_dict() | {"position": position})
    for batch, expected in zip(islice(data.train_dataloader(), 4), uninterrupted, strict=True):
        assert torch.equal(batch["tokens"], expected["tokens"])
        assert torch.equal(batch["continues"], expected["continues"])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_validation_reads_each_token_but_the_first_once_in_streams(make, batch_size):
    """With 64 rows there are more streams than windows."""
    data = make(batch_size=batch_size, validation_fraction=0.1, context_length=8)
    text = data._validation.windows.file.tokens.astype(np.int64)
    batches = list(data.val_dataloader())
    assert len(batches) == len(data.val_dataloader())
    assert {batch["tokens"].shape for batch in batches} == {(batch_size, 8)}
    # (B, steps · T): one stream after the other is the text
    targets = torch.cat([batch["targets"] for batch in batches], dim=1)
    assert (targets[targets != IGNORE_INDEX].numpy() == text[1:]).all()
    read = torch.stack([(batch["targets"] != IGNORE_INDEX).any(dim=1) for batch in batches])
    continues = torch.stack([batch["continues"] for batch in batches])
    assert not continues[0][read[0]].any()
    assert continues[1:].all()


def test_bounded_validation_reads_the_beginning_of_each_stream(make):
    data = make()
    whole = list(data.val_dataloader())
    data.validation_limit = data.validation_bytes / 3
    part = list(data.val_dataloader())
    assert 0 < len(part) < len(whole) / 2
    for batch, expected in zip(part, whole, strict=False):
        assert torch.equal(batch["targets"], expected["targets"])
    assert f"a fixed {len(part) * BATCH:,} of" in data.describe_validation()


def test_devices_share_the_streams_of_a_validation(make):
    whole = list(make().val_dataloader())
    for rank in range(2):
        own = on_device(make(), rank, 2).val_dataloader()
        for batch, expected in zip(own, whole, strict=True):
            assert torch.equal(batch["targets"], expected["targets"][rank::2])


def test_a_text_too_short_for_its_streams_is_refused(make):
    make(accumulate=2, text="x" * 290)
    with pytest.raises(
        DataError, match=r"8 streams of two windows each need 257.*smaller data\.batch"
    ):
        make(accumulate=2, text="x" * 280)


def test_the_summary_names_the_streams(make):
    line = make(2).describe()
    assert "contiguous: 8 streams" in line
    assert "data.stride is not used" in line
