"""The plan of tensor parallelism: the loss and all gradients of the whole model."""

import pytest
import torch
from divided import SMALL
from hydra import compose, initialize_config_module
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh

from llm import distributed
from llm.adapters.lora import LoRA
from llm.adapters.prefix import Prefix
from llm.config.build import build
from llm.dtensor import is_dtensor, to_full
from llm.losses import cross_entropy
from llm.models.classifier import Classifier
from llm.parallel import tensor_parallel_plan
from llm.parallel.lora_tensor_parallel import complete_plan_of
from llm.parallel.mesh_strategy import in_model_order

MODELS = {
    "learned positions, biases, tied": ("model=gpt2",),
    "gated, grouped, untied": ("model=llama", "size.num_kv_heads=2"),
    "normed queries and keys": ("model=gpt", "size.num_kv_heads=2"),
    "gated heads": ("model=llama", "model/attention=gated", "size.num_kv_heads=2"),
    "norms of outputs": ("model=llama", "model/residual=reordered_norm"),
    "slopes": ("model=gpt2", "model/position=alibi", "model/kernel=naive"),
    "scaled embedding, four norms": (
        *("model=gemma3", "model.pattern=[local,full]", "size.num_kv_heads=2"),
    ),
    "parallel": ("model=gpt_neox",),
    "bounded scores and logits": ("model=gemma2",),
    "values of the first layer, keys and values of the layer before": (
        *("model=gpt", "model/attention=value_residual", "model/layers=shared_kv"),
        *("size.num_layers=4", "size.num_kv_heads=2", "model.attention.qk_norm=${model.norm}"),
    ),
    "slopes and a window in every second layer": (
        *("model=llama", "model/layers=local_global", "model.pattern=[local,full]"),
        "+model.layers.local.position={_target_:llm.nn.positions.ALiBi,num_heads:4}",
    ),
}


def make(*words: str, vocab_size: int = 97) -> torch.nn.Module:
    """Make a small model whose vocabulary is not divisible by any number of devices."""
    small = [word for word in SMALL if not word.startswith(("model=", "data.path"))]
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", [*small, *words, f"model.vocab_size={vocab_size}"])
    torch.manual_seed(0)
    return build(config.model)


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(97, (3, 17), generator=torch.Generator().manual_seed(1))
    if isinstance(model, Classifier):
        return cross_entropy(model(tokens[:, :-1]), tokens[:, 0] % 3)
    positions = torch.arange(16).flip(0)  # given positions index a table, default ones slice it
    return cross_entropy(model(tokens[:, :-1], positions=positions), tokens[:, 1:])


def compare(cases: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Return for each model the largest difference between the gradients of the sharded and the whole model."""
    distributed.join_ranks("cpu")
    mesh = init_device_mesh("cpu", (distributed.world().size,))
    found = {}
    for name, words in cases.items():
        one, other = make(*words), make(*words)
        if name == "classifier":
            one, other = (_classifier(model) for model in (one, other))
        tensor_parallel_plan.parallelize(
            other, mesh, plan=tensor_parallel_plan.plan_of(other, mesh.size())
        )
        assert all(is_dtensor(parameter) for parameter in other.parameters())
        losses = loss_of(one), loss_of(other)
        torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
        for loss in losses:
            loss.backward()
        orders = tensor_parallel_plan.row_orders(other)
        expected = {n: p.grad for n, p in one.named_parameters()}
        own = {
            name: in_model_order(to_full(parameter.grad), orders.get(id(parameter)))
            for name, parameter in other.named_parameters()
        }
        assert own.keys() == expected.keys()  # a tied parameter is still one
        found[name] = max(float((own[n] - expected[n]).abs().max()) for n in own)
    return found


def _classifier(body: torch.nn.Module) -> Classifier:
    torch.manual_seed(0)
    return Classifier(body, num_classes=3)


def test_loss_and_gradients_equal_those_of_the_whole_model():
    found = on_ranks(2, compare, MODELS | {"classifier": ("model=gpt2",)})
    assert found[0].keys() == MODELS.keys() | {"classifier"}
    for differences in found:
        assert max(differences.values()) < 1e-6, differences


def test_each_device_has_whole_heads_of_query_key_and_value():
    rows = tensor_parallel_plan.Heads((4, 2, 2), head_dim=2).order(2).view(2, -1)
    assert rows[0].tolist() == [0, 1, 2, 3, 8, 9, 12, 13]
    assert rows[1].tolist() == [4, 5, 6, 7, 10, 11, 14, 15]


@pytest.mark.parametrize(
    ("words", "size", "message"),
    [
        (("model=llama", "size.num_kv_heads=2"), 4, "num_kv_heads=2 cannot be divided among 4"),
        (("model=gpt2",), 3, "num_heads=4 cannot be divided among 3 devices"),
        (("model=gpt2", "model.feed_forward.hidden_dim=30"), 4, "hidden_dim=30 cannot be divided"),
        (("model=olmo2",), 2, "qk_norm_over=all_heads: .*use hardware=fsdp"),
        (("model=bert",), 2, "divides a GPT, and BERT contains none: use hardware=fsdp"),
    ],
)
def test_indivisible_parts_are_named(words, size, message):
    with pytest.raises(ValueError, match=message):
        tensor_parallel_plan.plan_of(make(*words), size)


def test_part_without_a_plan_is_named():
    adapted = make("model=gpt2")
    Prefix(length=2).apply(adapted)
    models = {
        r"attention\.kernel\.key": adapted,
        r"attention\.sinks\.scores": make("model=gpt2", "model/attention=sinks"),
        r"attention_scale\.weight": make("model=gpt2", "model/residual=layer_scale"),
    }
    for name, model in models.items():
        plan = tensor_parallel_plan.plan_of(model, 2)
        with pytest.raises(ValueError, match=rf"blocks\.0\.{name}: .*use hardware=fsdp"):
            tensor_parallel_plan.require_complete_plan(model, plan)


def test_experts_are_refused_by_name():
    model = make("model=mixtral")
    plan = tensor_parallel_plan.plan_of(model, 2)
    message = r"blocks\.0\.feed_forward\.router\.weight: .* cannot divide MixtureOfExperts: use hardware=fsdp"
    with pytest.raises(ValueError, match=message):
        tensor_parallel_plan.require_complete_plan(model, plan)


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        (("model=mixtral",), r"blocks\.0\.feed_forward\.router", "MixtureOfExperts"),
        (("model=mamba2",), r"blocks\.0\.attention\.", "Mamba2"),
        (("model=lstm",), r"blocks\.0\.attention\.", "LSTM"),
    ],
)
def test_updates_of_parts_that_cannot_be_divided_are_refused_by_name(words, name, kind):
    model = make(*words)
    LoRA(targets=["*", "*router"] if "mixtral" in words[0] else ["*"]).apply(model)
    with pytest.raises(ValueError, match=f"^{name}.*cannot divide {kind}: use hardware=fsdp"):
        complete_plan_of(model, 2)
