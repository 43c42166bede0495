"""Multi-head latent attention equals transformers', and its absorbed form the expanded one."""

import pytest
import torch
from float64_mode import Float64
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from llm.nn.latent_attention import LatentAttention
from llm.nn.masks import causal
from llm.nn.positions import Rotary

DIM, HEADS, HEAD, TURNING, VALUE, LATENT = 24, 3, 6, 4, 5, 10


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layer(**settings) -> LatentAttention:
    torch.manual_seed(0)
    sizes = {"head_dim": HEAD, "rotary_dim": TURNING, "value_dim": VALUE, "latent_dim": LATENT}
    made = LatentAttention(DIM, HEADS, bias=False, qkv_bias=False, **{**sizes, **settings})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.double()


def rotation(x, start=0):
    return Rotary(TURNING, 1).rotation(x, slice(start, start + x.shape[1]))


@pytest.mark.parametrize("query_latent", [None, 8])
def test_layer_equals_that_of_transformers(query_latent):
    ours = layer(query_latent_dim=query_latent)
    config = DeepseekV3Config(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=query_latent,
        kv_lora_rank=LATENT,
        qk_nope_head_dim=HEAD,
        qk_rope_head_dim=TURNING,
        v_head_dim=VALUE,
        rope_interleave=False,
        attn_implementation="eager",
    )
    theirs = DeepseekV3Attention(config, layer_idx=0).double().eval()
    names = {
        "down": "kv_a_proj_with_mqa",
        "latent_norm": "kv_a_layernorm",
        "up": "kv_b_proj",
        **({"query": "q_proj"} if query_latent is None else {}),
        **(
            {"query_down": "q_a_proj", "query_norm": "q_a_layernorm", "query": "q_b_proj"}
            if query_latent
            else {}
        ),
        "output": "o_proj",
    }
    state = {
        f"{theirs_}.weight": ours.state_dict()[f"{ours_}.weight"]
        for ours_, theirs_ in names.items()
    }
    theirs.load_state_dict(state)
    for norm in (ours.latent_norm, ours.query_norm):
        if norm is not None:
            norm.eps = 1e-6
    x = draw(2, 7, DIM)
    cos, sin = (torch.cat((part, part), dim=-1).squeeze(1) for part in rotation(x))
    hidden = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with Float64():
        expected = theirs(x, (cos.expand(2, -1, -1), sin.expand(2, -1, -1)), hidden)[0]
    actual = ours(x, rotation=rotation(x))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"query_latent_dim": 8}, {"value_dim": HEAD + TURNING}])
@pytest.mark.parametrize("chunks", [[1] * 7, [4, 1, 2], [6, 1], [2, 5]])
def test_absorbed_form_equals_the_expanded_one(settings, chunks):
    ours, x = layer(**settings), draw(2, 7, DIM)
    cache, parts, start = ours.new_cache(2, 7, dtype=None, mask=causal), [], 0
    for part in x.split(chunks, dim=1):
        parts.append(ours(part, rotation=rotation(part, start), cache=cache))
        start += part.shape[1]
    expected = ours(x, rotation=rotation(x))
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-10)


def test_cache_holds_one_latent_and_one_rotated_key_for_each_token():
    cache = layer().new_cache(2, 9, dtype=torch.float32, mask=causal)
    assert cache.nbytes == 2 * 9 * (LATENT + TURNING) * 4
    # Attention with as many heads of this width stores keys and values of every head.
    assert cache.nbytes < 2 * 9 * (2 * HEADS * HEAD) * 4


def test_default_widths_are_those_of_the_paper():
    ours = LatentAttention(64, 4)
    widths = ours.head_dim, ours.latent_dim, ours.rotary_dim, ours.value_dim
    assert widths == (16, 64, 8, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotary_dim": 3}, "rotary_dim=3 is odd"),
        ({"value_dim": 11}, r"value_dim=11: give at most head_dim \+ rotary_dim = 10"),
        ({"head_dim": 0}, "head_dim=0"),
    ],
)
def test_widths_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        layer(**settings)
