"""The presets of published families compute the same as Hugging Face's library from equal tensors.

A family joins by one row of FAMILIES. Sequences are longer than the windows, and heads are grouped.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from float64_mode import Float64
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llm.nn.routing import load_balancing_loss
from llm.tasks.expert_balancing import ExpertBalancing
from llm.weights.key_map import KeyMap, QueryKeyValue, Rule

TOKENS = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
WINDOW = 6


class Family(NamedTuple):
    """A preset of ours and a configuration of Hugging Face's library that describe the same model.

    Attributes:
        ours: overrides of our command line, after those of SIZE.
        theirs: settings of theirs, besides those of `SETTINGS`; `model_type` names the family.
        rules: how their tensors form ours.
    """

    ours: Iterable[str]
    theirs: Mapping[str, Any]
    rules: tuple[Rule, ...]


SIZE = [
    *("size.num_layers=4", "size.dim=32", "size.num_heads=4", "size.num_kv_heads=2"),
    *("size.context_length=32", "model.attention.head_dim=12", "model.feed_forward.hidden_dim=40"),
]
SETTINGS = {
    "vocab_size": 97,
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "experts_implementation": "eager",  # the grouped one takes no float64
}


def same(ours: str, theirs: str) -> Rule:
    """Return the rule for one tensor, stored in the same way."""
    return Rule(ours, (theirs,))


def projections(kind: str = "weight") -> Rule:
    """Return the rule for the projections of queries, keys and values, which ours stacks."""
    theirs = (f"model.layers.{{}}.self_attn.{each}_proj.{kind}" for each in "qkv")
    return QueryKeyValue(f"blocks.{{}}.attention.query_key_value.{kind}", (*theirs,), 2)


def in_layers(names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return the rules for weights of each layer, from our names and theirs."""
    return tuple(
        same(f"blocks.{{}}.{ours}.weight", f"model.layers.{{}}.{theirs}.weight")
        for ours, theirs in names.items()
    )


# What Llama and all families below share.
BODY = (
    same("embedding.weight", "model.embed_tokens.weight"),
    projections(),
    *in_layers({"attention.output": "self_attn.o_proj"}),
    same("final_norm.weight", "model.norm.weight"),
    same("head.weight", "lm_head.weight"),
)
DENSE = in_layers(
    {
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.input": "mlp.up_proj",
        "feed_forward.output": "mlp.down_proj",
    }
)
EXPERTS = (
    *in_layers({"feed_forward.router": "mlp.gate"}),
    *(
        same(
            f"blocks.{{}}.feed_forward.experts.{ours}.weight",
            f"model.layers.{{}}.mlp.experts.{theirs}",
        )
        for ours, theirs in {"gate_and_input": "gate_up_proj", "output": "down_proj"}.items()
    ),
)
SHARED = (*BODY, *DENSE)
PRE_NORM = in_layers(
    {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
)
REORDERED_NORM = in_layers(
    {
        "attention_norm": "post_attention_layernorm",
        "feed_forward_norm": "post_feedforward_layernorm",
    }
)
QK_NORM = in_layers(
    {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
)
QK_NORM_ALL = in_layers(
    {"attention.query_norm.norm": "self_attn.q_norm", "attention.key_norm.norm": "self_attn.k_norm"}
)

QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
}

SANDWICH_NORM = in_layers(
    {
        "attention_norm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    }
)


@dataclass(frozen=True)
class ByHead(Rule):
    """Rows of queries, keys and values: ours has all queries first, theirs those of the first head."""

    num_heads: int = 4

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the rows in the order of the heads."""
        return [ours.unflatten(0, (3, self.num_heads, -1)).transpose(0, 1).flatten(0, 2)]


def gpt_neox() -> tuple[Rule, ...]:
    """Return the rules for GPT-NeoX."""
    names = {
        "attention_norm": "input_layernorm",
        "attention.output": "attention.dense",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.input": "mlp.dense_h_to_4h",
        "feed_forward.output": "mlp.dense_4h_to_h",
    }
    rules = [same("embedding.weight", "gpt_neox.embed_in.weight")]
    rules.append(same("head.weight", "lm_head.weight"))
    for kind in ("weight", "bias"):
        theirs = f"gpt_neox.layers.{{}}.attention.query_key_value.{kind}"
        rules.append(ByHead(f"blocks.{{}}.attention.query_key_value.{kind}", (theirs,)))
        rules.append(same(f"final_norm.{kind}", f"gpt_neox.final_layer_norm.{kind}"))
        for ours, theirs in names.items():
            rules.append(
                same(f"blocks.{{}}.{ours}.{kind}", f"gpt_neox.layers.{{}}.{theirs}.{kind}")
            )
    return (*rules,)


FAMILIES = {
    "llama": Family(["model=llama"], {"model_type": "llama"}, (*SHARED, *PRE_NORM)),
    "qwen2": Family(
        ["model=qwen2"],
        {"model_type": "qwen2"},
        (*SHARED, *PRE_NORM, projections("bias")),
    ),
    "qwen2-tied": Family(
        ["model=qwen2", "model.tie_weights=true"],
        {"model_type": "qwen2", "tie_word_embeddings": True},
        (*SHARED, *PRE_NORM, projections("bias")),
    ),
    "qwen3": Family(
        ["model=qwen3", "model.position.theta=1e6"],
        {"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        (*SHARED, *PRE_NORM, *QK_NORM),
    ),
    "olmo2": Family(
        ["model=olmo2"], {"model_type": "olmo2"}, (*SHARED, *REORDERED_NORM, *QK_NORM_ALL)
    ),
    "olmo3": Family(
        ["model=olmo3", f"model.layers.local.mask.size={WINDOW}", "model.position.theta=5e5"],
        {"model_type": "olmo3", "sliding_window": WINDOW},
        (*SHARED, *REORDERED_NORM, *QK_NORM_ALL),
    ),
    # The texts are longer than the context of pretraining, 8 tokens.
    "llama-yarn": Family(
        [
            *("model=llama", "model/position=rotary_yarn"),
            *("model.position.scaling.context_length=8", "model.position.scaling.beta_fast=2.0"),
        ],
        {
            "model_type": "llama",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "beta_fast": 2.0,
            },
        },
        (*SHARED, *PRE_NORM),
    ),
    "gemma2": Family(
        [
            *("model=gemma2", f"model.layers.local.mask.size={WINDOW}"),
            *("model.attention.kernel.softcap=3.0", "model.head.softcap=5.0"),
        ],
        {
            "model_type": "gemma2",
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
        (*SHARED, *SANDWICH_NORM),
    ),
    "gemma3": Family(
        ["model=gemma3", "model.pattern=[local,full]", f"model.layers.local.mask.size={WINDOW}"],
        {
            "model_type": "gemma3_text",
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 12,
        },
        (*SHARED, *SANDWICH_NORM, *QK_NORM),
    ),
    "gpt_neox": Family(
        ["model=gpt_neox", "size.num_kv_heads=4", "model.attention.head_dim=8"],
        {"model_type": "gpt_neox", "head_dim": 8},
        gpt_neox(),
    ),
    "gpt_neox-sequential": Family(
        [
            *("model=gpt_neox", "model/residual=pre_norm", "model.position.fraction=0.5"),
            *("size.num_kv_heads=4", "model.attention.head_dim=8"),
        ],
        {
            "model_type": "gpt_neox",
            "head_dim": 8,
            "use_parallel_residual": False,
            "rotary_pct": 0.5,
        },
        gpt_neox(),
    ),
    "smollm3": Family(
        ["model=smollm3", "model.position.theta=5e6"],
        {
            "model_type": "smollm3",
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
            "tie_word_embeddings": True,
        },
        (*SHARED, *PRE_NORM),
    ),
    "mistral": Family(
        ["model=mistral", f"model.mask.size={WINDOW}"],
        {"model_type": "mistral", "sliding_window": WINDOW},
        (*SHARED, *PRE_NORM),
    ),
    "mixtral": Family(
        ["model=mixtral", "model.feed_forward.num_experts=5", "model.position.theta=1e6"],
        {
            "model_type": "mixtral",
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        (*BODY, *EXPERTS, *PRE_NORM),
    ),
    "qwen3_moe": Family(
        ["model=qwen3_moe", "model.feed_forward.num_experts=6", "model.feed_forward.top_k=3"],
        {**QWEN3_MOE, "norm_topk_prob": True},
        (*BODY, *EXPERTS, *PRE_NORM, *QK_NORM),
    ),
    "qwen3_moe-unnormalized": Family(
        [
            *("model=qwen3_moe", "model.feed_forward.num_experts=6", "model.feed_forward.top_k=3"),
            "model.feed_forward.normalize=false",
        ],
        {**QWEN3_MOE, "norm_topk_prob": False},
        (*BODY, *EXPERTS, *PRE_NORM, *QK_NORM),
    ),
}


def with_fused_experts(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors with gates and inputs of experts in one tensor, as theirs are."""
    fused = dict(ours)
    for name in [name for name in ours if name.endswith("experts.gate.weight")]:
        parts = (fused.pop(name), fused.pop(name.replace("gate", "input")))
        fused[name.replace("gate", "gate_and_input")] = torch.cat(parts, dim=1)
    return fused


class Pair(NamedTuple):
    """A model of ours and theirs with equal tensors, in float64."""

    ours: Any
    theirs: Callable[..., Any]
    their_parameters: dict[str, Tensor]
    key_map: KeyMap


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def pair(request, build) -> Pair:
    return equal_models(build, request.param)


def equal_models(build: Any, family: Family) -> Pair:
    """Return a model of ours and theirs with equal tensors."""
    ours = build(*SIZE, *family.ours).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    settings = {**SETTINGS, **family.theirs}
    config = AutoConfig.for_model(**settings, attn_implementation="eager")
    with Float64():  # buffers are also computed in float64
        theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    key_map = KeyMap(family.rules, shared={})
    theirs.load_state_dict(key_map.to_theirs(with_fused_experts(ours.state_dict())))

    def call(tokens: Tensor, **inputs: Any) -> Any:
        with Float64():
            return theirs(tokens, **inputs)

    return Pair(ours, call, dict(theirs.named_parameters()), key_map)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_logits_equal_those_of_transformers(pair):
    assert_same(pair.ours(TOKENS), pair.theirs(TOKENS).logits)


@torch.no_grad()
def test_logits_of_padded_texts_equal_those_of_transformers(pair):
    real = torch.arange(20) >= torch.tensor([[0], [9]])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    expected = pair.theirs(TOKENS, attention_mask=real.long(), position_ids=positions).logits
    assert_same(pair.ours(TOKENS, attention_mask=real)[real], expected[real])


@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_transformers(pair):
    cache = pair.ours.new_cache(batch_size=2)
    steps = [pair.ours(part, cache=cache) for part in TOKENS.split([9, 1, 1, 9], dim=1)]
    assert_same(torch.cat(steps, dim=1), pair.theirs(TOKENS).logits)


def test_gradients_equal_those_of_transformers(pair):
    for logits in (pair.ours(TOKENS), pair.theirs(TOKENS).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    ours = pair.ours.named_parameters(remove_duplicate=False)
    gradients = with_fused_experts({name: parameter.grad for name, parameter in ours})
    found = pair.key_map.to_theirs(gradients)
    for name, parameter in pair.their_parameters.items():
        assert parameter.grad.any(), name
        assert_same(found[name], parameter.grad)


@torch.no_grad()
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_load_balancing_loss_equals_that_of_transformers(build, name, is_padded):
    pair = equal_models(build, FAMILIES[name])
    real = torch.arange(20) >= torch.tensor([[0], [9]]) if is_padded else None
    balancing = ExpertBalancing(pair.ours, total=lambda tensor: tensor)
    with torch.enable_grad(), balancing.recording():
        pair.ours(TOKENS, attention_mask=real)
    balancing.loss()
    shares = [(s.counts / s.tokens, s.probabilities / s.tokens) for s in balancing.sums]
    inputs = {} if real is None else {"attention_mask": real.long()}
    theirs = pair.theirs(TOKENS, output_router_logits=True, **inputs)
    # Theirs is that of the mean over the layers, ours the mean of the losses of the layers.
    mean = [torch.stack(each).mean(dim=0) for each in zip(*shares, strict=True)]
    assert_same(load_balancing_loss(*mean), theirs.aux_loss)
    for share, logits in zip(shares, theirs.router_logits, strict=True):
        with Float64():
            expected = load_balancing_loss_func(
                (logits,), logits.shape[-1], balancing.layers[0].top_k, inputs.get("attention_mask")
            )
        assert_same(load_balancing_loss(*share), expected)
