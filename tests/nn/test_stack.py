"""A stack of blocks of several kinds."""

from functools import partial

import pytest
import torch
from torch import nn

from llm.nn.attention import Attention
from llm.nn.block import Block
from llm.nn.context import Context
from llm.nn.feed_forward import FeedForward
from llm.nn.layer_schedule import Layer
from llm.nn.lstm import LSTM
from llm.nn.masks import causal, sliding_window
from llm.nn.positions import NoPosition, Rotary
from llm.nn.residual import pre_norm
from llm.nn.stack import Stack

DIM, HEADS = 16, 2
BASE = Layer(
    attention=partial(Attention, num_heads=HEADS),
    feed_forward=partial(FeedForward, hidden_dim=8),
    norm=nn.LayerNorm,
    residual=pre_norm,
)
ROTARY = Rotary(DIM, HEADS)


@pytest.fixture
def x():
    return torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(0))


def context(**inputs) -> Context:
    return Context(position=ROTARY, mask=causal, positions=slice(0, 6), **inputs)


def test_each_kind_has_its_own_mask_position_and_parts(x):
    kinds = {
        "local": Layer(mask=sliding_window(2), position=NoPosition()),
        "wide": Layer(feed_forward=partial(FeedForward, hidden_dim=24)),
    }
    stack = Stack(DIM, 4, layer=BASE, layers=kinds, pattern=["local", "wide"])
    widths = [block.feed_forward.input.out_features for block in stack]
    assert widths == [8, 24, 8, 24]

    index = torch.arange(6)
    window = sliding_window(2)(index, index)
    expected = x
    for number, block in enumerate(stack):
        local = {"rotation": None, "mask": window, "causal": False}
        full = {"rotation": ROTARY.rotation(x, slice(0, 6)), "mask": None, "causal": True}
        expected = block(expected, **(full if number % 2 else local))
    torch.testing.assert_close(stack(x, context()), expected)


def test_layers_of_one_kind_share_their_inputs(x, monkeypatch):
    prepared = []
    prepare = Block.prepare
    monkeypatch.setattr(
        Block, "prepare", lambda *args, **kwargs: prepared.append(1) or prepare(*args, **kwargs)
    )
    kinds = {"a": Layer(), "b": Layer(mask=sliding_window(3))}
    Stack(DIM, 9, layer=BASE, layers=kinds, pattern=["2*a", "b"])(x, context())
    assert len(prepared) == 2


def test_stack_without_kinds_is_uniform_and_kinds_without_a_pattern_alternate():
    assert Stack(DIM, 3, layer=BASE).schedule == ["all"] * 3
    kinds = {"a": Layer(), "b": Layer()}
    assert Stack(DIM, 3, layer=BASE, layers=kinds).schedule == ["a", "b", "a"]
    with pytest.raises(ValueError, match="there are no kinds of layers"):
        Stack(DIM, 3, layer=BASE, pattern=["a"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"mask": sliding_window(2)}, "layers: a has a mask, and LSTM reads its tokens in order"),
        ({"position": ROTARY}, "layers: a has a position, and LSTM reads its tokens in order"),
    ],
)
def test_mask_or_position_of_a_recurrence_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Stack(DIM, 2, layer=BASE, layers={"a": Layer(attention=LSTM, **parts)})
