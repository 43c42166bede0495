from functools import partial

import torch
from float64_mode import Float64
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextSparseMoeBlock

from llm.nn.feed_forward import GatedFeedForward
from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.nn.token_gate import TokenGate

SHARED = partial(GatedFeedForward, hidden_dim=12, bias=False)


def test_experts_with_a_gated_one_equal_those_of_qwen3_next():
    torch.manual_seed(0)
    ours = MixtureOfExperts(
        *(16,),
        num_experts=5,
        top_k=2,
        hidden_dim=8,
        bias=False,
        shared=partial(TokenGate, layer=SHARED, bias=False),
    ).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    config = Qwen3NextConfig(
        hidden_size=16,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=12,
        experts_implementation="eager",
    )
    theirs = Qwen3NextSparseMoeBlock(config).double()
    experts, shared = ours.experts, ours.shared
    theirs.load_state_dict(
        {
            "gate.weight": ours.router.weight,
            "experts.gate_up_proj": torch.cat((experts.gate.weight, experts.input.weight), dim=1),
            "experts.down_proj": experts.output.weight,
            "shared_expert.gate_proj.weight": shared.layer.gate.weight,
            "shared_expert.up_proj.weight": shared.layer.input.weight,
            "shared_expert.down_proj.weight": shared.layer.output.weight,
            "shared_expert_gate.weight": shared.gate.weight,
        }
    )
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    with Float64():
        expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-12)


def test_closed_gate_lets_nothing_pass():
    gated = TokenGate(16, layer=SHARED)
    torch.nn.init.constant_(gated.gate.bias, -1e4)
    assert not gated(torch.ones(3, 16)).any()
