import torch
from torch import nn

from llm.nn.attention import Attention
from llm.nn.block import Block
from llm.nn.feed_forward import FeedForward
from llm.nn.norms import LayerNorm
from llm.nn.residual import post_norm, pre_norm


def make(residual, feed_forward=FeedForward):
    torch.manual_seed(0)
    return Block(
        8,
        attention=lambda dim: Attention(dim, 2),
        feed_forward=feed_forward,
        norm=LayerNorm,
        residual=residual,
    )


def test_pre_norm_block_equals_the_equation_of_gpt2():
    block, x = make(pre_norm), torch.randn(2, 5, 8)
    middle = x + block.attention(block.attention_norm(x))
    expected = middle + block.feed_forward(block.feed_forward_norm(middle))
    torch.testing.assert_close(block(x), expected)


def test_block_without_a_feed_forward_layer_has_one_sublayer_and_one_norm():
    block, x = make(pre_norm, feed_forward=None), torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), x + block.attention(block.attention_norm(x)))
    assert {name.partition(".")[0] for name, _ in block.named_parameters()} == {
        "attention_norm",
        "attention",
    }


def test_post_norm_block_equals_torch_encoder_layer():
    block = make(post_norm).double().eval()
    theirs = nn.TransformerEncoderLayer(
        8,
        2,
        32,
        dropout=0.0,
        batch_first=True,
        dtype=torch.float64,
        activation=lambda x: nn.functional.gelu(x, approximate="tanh"),
    )
    names = {
        "self_attn.in_proj_": "attention.query_key_value.",
        "self_attn.out_proj.": "attention.output.",
        "linear1.": "feed_forward.input.",
        "linear2.": "feed_forward.output.",
        "norm1.": "attention_norm.",
        "norm2.": "feed_forward_norm.",
    }
    state = {}
    for name, tensor in theirs.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)] = tensor
    block.load_state_dict(state)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x, causal=False), theirs(x), rtol=0, atol=1e-12)
