"""Layouts of tensors in GGUF files, against the definition of the rotation, and their inverses."""

import pytest
import torch

from llm.weights.gguf_layouts import (
    InputsLast,
    Interleaved,
    ScaledByOneMore,
    StateSpace,
    TensorLayout,
)

SETTINGS = {"num_attention_heads": 4, "num_key_value_heads": 2, "n_groups": 3}
SHAPES = {
    "blk.0.attn_q.weight": (24, 5),
    "blk.0.attn_k.weight": (12, 5),
    "blk.0.attn_k.bias": (12,),
    "blk.0.attn_v.weight": (12, 5),
    "blk.0.attn_qkv.weight": (4, 5),
    "blk.0.attn_norm.weight": (6,),
    "blk.0.ssm_a": (6,),
    "blk.0.ssm_d": (6,),
    "blk.0.ssm_conv1d.weight": (6, 1, 4),
    "blk.0.ssm_norm.weight": (6,),
}


@pytest.mark.parametrize(
    "layout", [TensorLayout, Interleaved, ScaledByOneMore, InputsLast, StateSpace]
)
@pytest.mark.parametrize("name", SHAPES)
def test_published_is_the_inverse_of_stored(layout, name):
    tensor = torch.rand(SHAPES[name], generator=torch.Generator().manual_seed(0))
    stored = layout().stored(name, tensor, SETTINGS)
    torch.testing.assert_close(layout().published(name, stored, SETTINGS), tensor)


def test_rotated_pairs_become_neighbours():
    """Pair j of a head is rows j and j + 3 of 6 as published, and rows 2j and 2j + 1 in the file."""
    published = torch.arange(12.0).view(12, 1)  # two heads
    stored = Interleaved().stored("blk.0.attn_k.weight", published, SETTINGS).flatten()
    assert stored.tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_decay_is_negative():
    stored = StateSpace().stored("blk.0.ssm_a", torch.tensor([0.0, 1.0]), SETTINGS)
    torch.testing.assert_close(stored, torch.tensor([[-1.0], [-2.718281828]]))
