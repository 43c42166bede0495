from functools import partial

import torch
from float64_mode import Float64
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

from llm.nn.attention import Attention
from llm.nn.norms import ZeroCenteredRMSNorm
from llm.nn.output_gate import SigmoidGate
from llm.nn.positions import Rotary

GATED = partial(
    Attention,
    *(16, 4),
    num_kv_heads=2,
    head_dim=8,
    bias=False,
    qkv_bias=False,
    qk_norm=partial(ZeroCenteredRMSNorm, eps=1e-6),
    output_gate=SigmoidGate,
)


def test_gated_attention_equals_that_of_qwen3_next():
    torch.manual_seed(0)
    ours = GATED().double()
    config = Qwen3NextConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        attn_implementation="eager",
    )
    theirs = Qwen3NextAttention(config, layer_idx=0).double()
    for norm in (ours.query_norm, ours.key_norm):
        torch.nn.init.normal_(norm.weight.data)
    query, key, value = ours.query_key_value.weight.split([32, 16, 16])
    gate = ours.output_gate.projection.weight
    # Their matrix alternates between the rows of a head's queries and of its gate.
    alternating = torch.stack([rows.unflatten(0, (4, 8)) for rows in (query, gate)], dim=1)
    theirs.load_state_dict(
        {
            "q_proj.weight": alternating.flatten(0, 2),
            "k_proj.weight": key,
            "v_proj.weight": value,
            "o_proj.weight": ours.output.weight,
            "q_norm.weight": ours.query_norm.weight,
            "k_norm.weight": ours.key_norm.weight,
        }
    )
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    rotation = Rotary(16, 4, head_dim=8, fraction=0.25).rotation(x, slice(0, 7))
    twice = [part.repeat(1, 1, 2) for part in rotation]  # (1, T, R/2) -> (1, T, R)
    mask = torch.zeros(7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    with Float64():
        expected, _ = theirs(x, twice, mask)
    torch.testing.assert_close(ours(x, rotation=rotation), expected, rtol=0, atol=1e-12)


def test_closed_gate_lets_nothing_pass():
    attention, x = GATED(), torch.ones(1, 3, 16)
    torch.nn.init.constant_(attention.output_gate.projection.weight, -1e4)
    assert not attention(x).any()
