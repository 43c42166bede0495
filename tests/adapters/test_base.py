"""Properties of every adapter: what it freezes, how it is stored, what a checkpoint must contain."""

import copy

import pytest
import torch
from torch import nn

from llm.adapters.base import adapter_state, disabled
from llm.adapters.freeze import Head, LastBlock
from llm.adapters.lora import LoRA
from llm.adapters.prefix import Prefix
from llm.checkpoints.lazy_tensor import in_memory
from llm.config.errors import ConfigError
from llm.models.classifier import Classifier
from llm.optim.groups import decay_matrices
from llm.weights.state_loading import fill_state

ADAPTERS = [LoRA, Prefix, LastBlock, Head]
ADDING = [LoRA, Prefix]


def bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("preset", ["gpt2", "gpt", "llama"])
def test_all_trainable_parameters_and_no_others_get_gradients(
    build, tokens, randomize, preset, adapter
):
    model = Classifier(build(f"model={preset}"), 2)
    adapter().apply(model, new=["head.weight", "head.bias"])
    randomize(model)(tokens).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.any(), name
    assert {"head.weight", "head.bias"} <= adapter_state(model).keys()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_optimizer_groups_contain_the_trainable_parameters(build, adapter):
    model = build()
    adapter().apply(model)
    grouped = [p for group in decay_matrices(model) for p in group["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in trainable}
    assert 0 < len(grouped) < len(list(model.parameters()))


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_a_tied_parameter_is_new_under_either_name(build, name):
    model = build("model=gpt2")
    LastBlock().apply(model, new=[name])
    assert model.head.weight.requires_grad
    assert model.head.weight is model.embedding.weight


def test_new_parameters_must_exist(build):
    with pytest.raises(
        ValueError, match=r"new: GPT has no parameter head\.bias; use names of its parameters$"
    ):
        LoRA().apply(build(), new=["head.weight", "head.bias"])


@pytest.mark.parametrize("adapter", ADDING)
@pytest.mark.parametrize("preset", ["gpt2", "gpt"])
def test_disabled_adapter_gives_the_outputs_of_the_base(build, tokens, randomize, preset, adapter):
    model = build(f"model={preset}").eval()
    before = model(tokens)
    adapter().apply(model)
    adapted = randomize(model)(tokens)
    assert not torch.allclose(adapted, before, atol=1e-3)
    with disabled(model):
        assert torch.equal(model(tokens), before)
        with disabled(model):
            assert torch.equal(model(tokens), before)
        assert torch.equal(model(tokens), before)
    assert torch.equal(model(tokens), adapted)
    with pytest.raises(ValueError, match="vocab_size"), disabled(model):
        model(tokens + 97)
    assert torch.equal(model(tokens), adapted)


def test_model_without_added_parameters_cannot_be_disabled(build):
    model = build()
    LastBlock().apply(model)
    with pytest.raises(ValueError, match="no adapter to switch off"), disabled(model):
        pass


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_checkpoint_of_the_trainable_parameters_restores_the_model(
    build, tokens, randomize, adapter
):
    base = build("model=gpt").eval()
    trained, fresh = copy.deepcopy(base), copy.deepcopy(base)
    for model in (trained, fresh):
        adapter().apply(model)
    randomize(trained)
    assert not torch.equal(trained(tokens), fresh(tokens))
    fill_state(adapter_state(fresh), in_memory(adapter_state(trained)), problems={})
    assert torch.equal(trained(tokens), fresh(tokens))
    assert not any(tensor.requires_grad for tensor in adapter_state(fresh).values())


def test_all_mismatches_of_a_checkpoint_are_reported_and_nothing_is_loaded(build, tokens):
    model = build("model=gpt2").eval()
    LastBlock().apply(model)
    before = model(tokens)
    state = {name: tensor + 1 for name, tensor in adapter_state(model).items()}
    del state["final_norm.bias"]
    state["final_norm.weight"] = torch.zeros(3)
    state["extra"] = torch.zeros(1)
    with pytest.raises(ConfigError, match="3 problems") as error:
        fill_state(adapter_state(model), in_memory(state), problems={})
    assert "missing: a tensor for final_norm.bias" in str(error.value)
    assert "unexpected: extra" in str(error.value)
    assert (
        "wrong shape: final_norm.weight needs (64,), but (3,) is stored in final_norm.weight"
        in str(error.value)
    )
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("preset", ["gpt2", "gpt", "llama"])
def test_frozen_matrices_in_bfloat16_give_the_same_outputs_as_autocast(
    build, tokens, preset, adapter
):
    """Outputs are bit-identical: autocast rounds matrices in the same way. The test itself rounds embeddings."""
    model = build(f"model={preset}").eval()
    stored = copy.deepcopy(model)
    for each, dtype in ((model, None), (stored, "bfloat16")):
        torch.manual_seed(1)
        adapter(frozen_dtype=dtype).apply(each)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.bfloat16().float()
    with bfloat16():
        assert torch.equal(stored(tokens), model(tokens))
        assert stored.hidden_states(tokens).dtype == torch.float32


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_all_frozen_parameters_except_norms_are_stored_in_bfloat16(build, adapter):
    model = build("model=gpt2", "model.tie_weights=false")
    adapter(frozen_dtype="bfloat16").apply(model)
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name
        expected = torch.float32 if parameter.requires_grad or is_norm else torch.bfloat16
        assert parameter.dtype == expected, name


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("preset", ["gpt2", "gpt"])
def test_frozen_matrices_in_bfloat16_work_without_autocast(
    build, tokens, randomize, preset, adapter
):
    torch.manual_seed(0)
    model = build(f"model={preset}").eval()
    stored = copy.deepcopy(model)
    for each, dtype in ((model, None), (stored, "bfloat16")):
        torch.manual_seed(1)
        adapter(frozen_dtype=dtype).apply(each)
        randomize(each)
    exact, low = model(tokens), stored(tokens)
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() < 0.03 * exact.abs().max()
    low.square().sum().backward()
    gradients = [p.grad for p in stored.parameters() if p.requires_grad]
    assert all(g.dtype == torch.float32 and g.any() for g in gradients)

    cache = stored.new_cache(2)
    cached = torch.cat(
        [stored(part, cache=cache) for part in tokens.split([7, 1, 4], dim=1)], dim=1
    )
    assert (cached - low).abs().max() < 0.03 * low.abs().max()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_deep_copy_is_independent_of_the_model(build, tokens, randomize, adapter):
    """DPO makes its frozen reference with `copy.deepcopy`."""
    model = build("model=gpt").eval()
    adapter(frozen_dtype="bfloat16").apply(model)
    reference = copy.deepcopy(model)
    before = model(tokens)
    randomize(model)
    assert not torch.equal(model(tokens), before)
    assert torch.equal(reference(tokens), before)
