import pytest
import torch

from llm.nn.attention import Attention
from llm.nn.feed_forward import FeedForward
from llm.nn.norms import RMSNorm
from llm.nn.residual import post_norm, pre_norm
from llm.nn.sandwich_block import SandwichBlock


def make(residual):
    torch.manual_seed(0)
    block = SandwichBlock(
        8,
        attention=lambda dim: Attention(dim, 2),
        feed_forward=FeedForward,
        norm=RMSNorm,
        residual=residual,
    )
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    return block


def test_each_sublayer_is_between_two_norms():
    block, x = make(pre_norm), torch.randn(2, 5, 8)
    middle = x + block.attention_output_norm(block.attention(block.attention_norm(x)))
    output = block.feed_forward(block.feed_forward_norm(middle))
    expected = middle + block.feed_forward_output_norm(output)
    torch.testing.assert_close(block(x), expected)


def test_what_a_sublayer_adds_does_not_grow_with_its_output():
    block, x = make(pre_norm), torch.randn(2, 5, 8)
    before = block(x)
    for layer in (block.attention, block.feed_forward):
        layer.output.weight.data *= 1000
        layer.output.bias.data *= 1000
    torch.testing.assert_close(block(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("residual", [pre_norm, post_norm])
def test_gradient_reaches_every_parameter(residual):
    block = make(residual)
    block(torch.randn(2, 5, 8)).sin().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.any(), name
