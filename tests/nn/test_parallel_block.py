import pytest
import torch

from llm.nn.attention import Attention
from llm.nn.feed_forward import FeedForward
from llm.nn.norms import LayerNorm
from llm.nn.parallel_block import ParallelBlock
from llm.nn.residual import post_norm, pre_norm


def make(residual=pre_norm, feed_forward=FeedForward):
    torch.manual_seed(0)
    return ParallelBlock(
        8,
        attention=lambda dim: Attention(dim, 2),
        feed_forward=feed_forward,
        norm=LayerNorm,
        residual=residual,
    )


def test_both_sublayers_read_the_input():
    block, x = make(), torch.randn(2, 5, 8)
    for norm in (block.attention_norm, block.feed_forward_norm):
        torch.nn.init.normal_(norm.weight)
    expected = (
        x
        + block.attention(block.attention_norm(x))
        + block.feed_forward(block.feed_forward_norm(x))
    )
    torch.testing.assert_close(block(x), expected)


def test_a_residual_that_norms_the_output_is_refused():
    with pytest.raises(ValueError, match=r"residual: .* use pre_norm"):
        make(post_norm)


def test_block_without_a_feed_forward_layer_is_refused():
    with pytest.raises(ValueError, match=r"feed_forward: ParallelBlock .* model/residual=pre_norm"):
        make(feed_forward=None)
