"""Mixtures of experts: their files have one tensor for each expert, and their losses are those of transformers."""

import pytest
import torch
from float64_mode import Float64
from published_families import TOKENS, VARIANTS, Exact
from safetensors.torch import load_file, save_file
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llm.config.errors import ConfigError
from llm.nn.routing import load_balancing_loss
from llm.tasks.expert_balancing import ExpertBalancing

REAL = torch.arange(40) >= torch.tensor([[0], [13], [25]])


@torch.no_grad()
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "qwen3_next"])
def test_load_balancing_loss_equals_that_of_transformers(name, is_padded, tmp_path):
    VARIANTS[name].make().save_pretrained(tmp_path)
    ours, exact = VARIANTS[name].weights(tmp_path).model().double(), Exact(tmp_path)
    real = REAL if is_padded else None
    balancing = ExpertBalancing(ours, total=lambda tensor: tensor)
    with torch.enable_grad(), balancing.recording():
        ours(TOKENS, attention_mask=real)
    balancing.loss()
    shares = [(s.counts / s.tokens, s.probabilities / s.tokens) for s in balancing.sums]
    inputs = {} if real is None else {"attention_mask": real.long()}
    with Float64():
        theirs = exact.model(TOKENS, output_router_logits=True, **inputs)
    # Theirs is that of the mean over the layers, ours the mean of the losses of the layers.
    mean = [torch.stack(each).mean(dim=0) for each in zip(*shares, strict=True)]
    assert_same(load_balancing_loss(*mean), theirs.aux_loss)
    for share, logits in zip(shares, theirs.router_logits, strict=True):
        with Float64():
            expected = load_balancing_loss_func(
                (logits,), logits.shape[-1], balancing.layers[0].top_k, inputs.get("attention_mask")
            )
        assert_same(load_balancing_loss(*share), expected)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_a_missing_expert_is_named(tmp_path):
    VARIANTS["mixtral"].make().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, file)
    with pytest.raises(ConfigError) as error:
        VARIANTS["mixtral"].weights(tmp_path).model()
    assert error.value.problems[1:] == (
        "  missing: model.layers.1.block_sparse_moe.experts.3.w2.weight",
    )


def test_many_missing_experts_are_counted(tmp_path):
    VARIANTS["qwen3_moe"].make().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if "layers.1.mlp.experts" not in n}, file)
    with pytest.raises(ConfigError) as error:
        VARIANTS["qwen3_moe"].weights(tmp_path).model()
    assert error.value.problems[1] == (
        "  missing: model.layers.1.mlp.experts.0.gate_proj.weight, "
        "model.layers.1.mlp.experts.1.gate_proj.weight, "
        "model.layers.1.mlp.experts.2.gate_proj.weight and 3 more"
    )
