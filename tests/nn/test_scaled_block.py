import pytest
import torch

from llm.nn.attention import Attention
from llm.nn.block import Block
from llm.nn.feed_forward import FeedForward
from llm.nn.norms import RMSNorm
from llm.nn.residual import post_norm, pre_norm, reordered_norm
from llm.nn.scaled_block import LayerScale, ReZero, ScaledBlock


def make(residual=pre_norm, scale=LayerScale):
    torch.manual_seed(0)
    parts = {"feed_forward": FeedForward, "norm": RMSNorm, "residual": residual}
    return ScaledBlock(8, attention=lambda dim: Attention(dim, 2), scale=scale, **parts)


@pytest.mark.parametrize("scale", [LayerScale, ReZero])
def test_outputs_of_both_sublayers_are_scaled(scale):
    block, x = make(scale=scale), torch.randn(2, 5, 8)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    middle = x + block.attention_scale.weight * block.attention(block.attention_norm(x))
    output = block.feed_forward(block.feed_forward_norm(middle))
    torch.testing.assert_close(block(x), middle + block.feed_forward_scale.weight * output)


@pytest.mark.parametrize("residual", [pre_norm, post_norm, reordered_norm])
def test_factors_of_one_change_nothing(residual):
    scaled, x = make(residual), torch.randn(2, 5, 8)
    parts = {"feed_forward": FeedForward, "norm": RMSNorm, "residual": residual}
    plain = Block(8, attention=lambda dim: Attention(dim, 2), **parts)
    plain.load_state_dict(scaled.state_dict(), strict=False)
    for scale in (scaled.attention_scale, scaled.feed_forward_scale):
        torch.nn.init.ones_(scale.weight)
    torch.testing.assert_close(scaled(x), plain(x))


def test_rezero_begins_as_the_identity_and_learns_its_factors_first():
    block, x = make(scale=ReZero), torch.randn(2, 5, 8)
    assert torch.equal(block(x), x)
    block(x).sin().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.any() == name.endswith("scale.weight"), name


def test_reset_restores_the_initial_factors():
    scale = LayerScale(8, initial=0.3)
    torch.nn.init.normal_(scale.weight)
    scale.reset_parameters()
    assert (scale.weight == 0.3).all()


def test_gradient_reaches_every_parameter():
    block = make()
    block(torch.randn(2, 5, 8)).sin().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.any(), name
