"""Random states are plain data, restored exactly, and separate for each rank."""

import io
import random
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import numpy as np
import pytest
import torch

from llm.callbacks.rng_state import (
    RandomStates,
    restore_generators,
    states,
    stream_of,
    switch_stream,
)


@pytest.fixture(autouse=True)
def _seeded():
    """Seed each generator, and restore all states afterwards."""
    before = states()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    restore_generators(before)


def draw() -> tuple[float, ...]:
    return random.gauss(0, 1), np.random.normal(), torch.randn(()).item()


def trainer(stream: int = 0, strategy: object = None) -> Mock:
    kwargs = {"rank": stream}
    return Mock(spec=L.Trainer, distributed_sampler_kwargs=kwargs, strategy=strategy)


def begin(callback: RandomStates, stream: int = 0) -> None:
    callback.on_train_batch_start(trainer(stream), Mock(spec=L.LightningModule), None, 0)


def test_restored_generators_continue_where_their_states_were_taken():
    draw()  # generators that make normal numbers in pairs keep the second one for the next call
    kept = states()
    expected = [draw() for _ in range(3)]
    restore_generators(kept)
    assert [draw() for _ in range(3)] == expected


def test_states_are_plain_data_that_a_checkpoint_may_hold():
    file = io.BytesIO()
    torch.save(RandomStates().state_dict(), file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    expected = draw()
    restore_generators(read["ranks"][0])
    assert draw() == expected


def test_a_saved_state_is_restored_once_and_before_the_first_batch():
    kept = RandomStates().state_dict()
    expected = draw()
    callback = RandomStates()
    callback.load_state_dict(kept)
    draw()  # as setting up a trainer does
    begin(callback)
    assert draw() == expected
    begin(callback)
    assert draw() != expected


def test_the_first_stream_continues_and_others_differ():
    kept, found = states(), []
    for stream in range(3):
        restore_generators(kept)
        switch_stream(stream)
        found.append(draw())
    restore_generators(kept)
    assert found[0] == draw()
    for drawn in zip(*found, strict=True):
        assert len(set(drawn)) == 3


def test_a_stream_is_a_function_of_the_seed_and_its_number():
    kept = states()
    switch_stream(2)
    expected = draw()
    restore_generators(kept)
    switch_stream(2)
    assert draw() == expected
    torch.manual_seed(1)
    switch_stream(2)
    assert draw() != expected


def test_states_of_another_number_of_ranks_start_separate_streams():
    kept = {"ranks": RandomStates().state_dict()["ranks"] * 2}
    found = []
    for stream in (0, 1):
        callback = RandomStates()
        callback.load_state_dict(kept)
        draw()
        begin(callback, stream)
        found.append(draw())
    restore_generators(kept["ranks"][0])
    assert found[0] == draw() != found[1]


def test_a_strategy_may_number_the_streams_itself():
    assert stream_of(trainer(2)) == 2
    assert stream_of(trainer(2, SimpleNamespace(stream=5))) == 5
