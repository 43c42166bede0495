import math

import pytest
import torch
from float64_mode import Float64
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

from llm.nn.attention import Attention, fused_attention, naive_attention
from llm.nn.positions import Rotary
from llm.nn.sinks import Sinks


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def masks() -> dict[str, torch.Tensor | None]:
    boolean = torch.rand(2, 1, 3, 5) < 0.6
    return {
        "none": None,
        "boolean": boolean,
        "square": boolean[0, 0],
        "floating": torch.randn(4, 3, 5, dtype=torch.float64),
        "nothing": torch.zeros(3, 5, dtype=torch.bool),
    }


@pytest.mark.parametrize("kernel", [naive_attention, fused_attention])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 2)])
@pytest.mark.parametrize("mask", ["none", "boolean", "square", "floating", "nothing"])
def test_sinks_are_a_term_of_the_denominator(kernel, causal, window, mask):
    torch.manual_seed(0)
    query, key, value = random(2, 4, 3, 8), random(2, 4, 5, 8), random(2, 4, 5, 8)
    mask, sinks = masks()[mask], Sinks(4).double()
    torch.nn.init.normal_(sinks.scores)

    exponentials = (query @ key.transpose(-2, -1) / math.sqrt(8)).exp()
    if causal:
        exponentials = exponentials * torch.ones(3, 5).tril(2).triu(2 - (window or 5) + 1)
    if mask is not None:
        exponentials = exponentials * (mask if mask.dtype == torch.bool else mask.exp())
    denominator = exponentials.sum(dim=-1, keepdim=True) + sinks.scores.exp()[:, None, None]
    expected = exponentials / denominator @ value

    given = {"mask": mask, "causal": causal, "window": window}
    actual = sinks(query, key, value, kernel=kernel, **given)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    inputs, direction = [query, key, value, sinks.scores], torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        rtol=0,
        atol=1e-12,
    )


def test_attention_with_sinks_equals_that_of_gpt_oss():
    torch.manual_seed(0)
    ours = Attention(16, 4, num_kv_heads=2, head_dim=8, sinks=Sinks).double()
    config = GptOssConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        attn_implementation="eager",
    )
    theirs = GptOssAttention(config, layer_idx=0).double()
    torch.nn.init.normal_(ours.sinks.scores)
    state = {"sinks": ours.sinks.scores}
    for kind in ("weight", "bias"):
        parts = getattr(ours.query_key_value, kind).split([32, 16, 16])
        state |= {f"{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
        state[f"o_proj.{kind}"] = getattr(ours.output, kind)
    theirs.load_state_dict(state)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    rotation = Rotary(16, 4, head_dim=8).rotation(x, slice(0, 7))
    mask = torch.zeros(7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    with Float64():
        expected, _ = theirs(x, rotation, mask)
    torch.testing.assert_close(ours(x, rotation=rotation), expected, rtol=0, atol=1e-12)


def test_low_scores_of_sinks_change_nothing_and_high_ones_hide_all_keys():
    torch.manual_seed(0)
    attention, x = Attention(16, 4, sinks=Sinks, bias=False), torch.randn(2, 5, 16)
    attention.sinks.scores.data.fill_(-1e9)
    plain = Attention(16, 4, bias=False)
    plain.load_state_dict(attention.state_dict(), strict=False)
    torch.testing.assert_close(attention(x), plain(x))
    attention.sinks.scores.data.fill_(1e9)
    assert not attention(x).any()
