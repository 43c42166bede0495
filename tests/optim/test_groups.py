import pytest
import torch
from torch import nn

from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.optim.groups import decay_everything, decay_matrices


class Tiny(nn.Module):
    """A module with the structure of a language model: an embedding tied to the head, blocks, a norm."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(4), "output": nn.Linear(4, 4)}) for _ in range(2)
        )
        self.final_norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def names(model, group):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("groups", [decay_matrices, decay_everything])
def test_every_trainable_parameter_is_in_exactly_one_group(groups):
    model = Tiny()
    seen = [id(parameter) for group in groups(model) for parameter in group["params"]]
    assert sorted(seen) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("groups", [decay_matrices, decay_everything])
def test_frozen_parameters_are_left_out(groups):
    model = Tiny()
    model.blocks[0].requires_grad_(False)
    seen = {id(parameter) for group in groups(model) for parameter in group["params"]}
    assert seen == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(seen) == len(list(model.parameters())) - 4


def test_matrices_decay_and_vectors_do_not():
    model = Tiny()
    for group in decay_matrices(model):
        dimensions = {parameter.ndim for parameter in group["params"]}
        if group.get("weight_decay") == 0.0:
            assert dimensions == {1}
        else:
            assert "weight_decay" not in group
            assert dimensions == {2}


def test_decay_everything_leaves_the_decay_to_the_optimizer():
    assert all("weight_decay" not in group for group in decay_everything(Tiny()))


def test_hidden_matrices_are_those_in_blocks():
    model = Tiny()
    hidden = [group for group in decay_matrices(model) if group["hidden"]]
    assert [group["name"] for group in hidden] == ["hidden"]
    assert names(model, hidden[0]) == {"blocks.0.output.weight", "blocks.1.output.weight"}


def test_a_wrapped_model_has_the_same_groups():
    model = Tiny()
    wrapped = nn.ModuleDict({"model": model})
    assert [g["name"] for g in decay_matrices(wrapped)] == ["hidden", "embedding", "vector"]
    assert names(model, decay_matrices(wrapped)[0]) == names(model, decay_matrices(model)[0])


def test_kind_without_parameters_gets_no_group():
    assert [group["name"] for group in decay_matrices(nn.LayerNorm(3))] == ["vector"]


def test_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="Tiny has no trainable parameter"):
        decay_matrices(Tiny().requires_grad_(False))


def test_groups_without_weight_decay_use_that_of_the_optimizer():
    model = Tiny()
    optimizer = torch.optim.AdamW(decay_matrices(model), lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_convolutions_and_vectors_of_a_recurrence_are_not_hidden_matrices(build):
    model = build("model=gated_deltanet", "size.num_layers=1")
    groups = {group["name"]: group for group in decay_matrices(model)}
    assert names(model, groups["convolution"]) == {"blocks.0.attention.convolution.weight"}
    assert not groups["convolution"]["hidden"]
    assert "weight_decay" not in groups["convolution"]
    vectors = {f"blocks.0.attention.{name}" for name in ("A_log", "dt_bias", "norm.weight")}
    assert vectors <= names(model, groups["vector"])
    assert groups["vector"]["weight_decay"] == 0.0
    model = build("model=mamba2", "size.num_layers=1")
    groups = {group["name"]: group for group in decay_matrices(model)}
    vectors = {f"blocks.0.attention.{name}" for name in ("A_log", "D", "dt_bias")}
    assert vectors <= names(model, groups["vector"])


def test_routers_are_no_hidden_matrices_and_biases_of_stacks_do_not_decay():
    model = nn.ModuleDict(
        {"blocks": nn.ModuleList([MixtureOfExperts(8, num_experts=4, hidden_dim=8, bias=True)])}
    )
    found = {group["name"]: group for group in decay_matrices(model)}
    experts = "blocks.0.experts"
    assert names(model, found["router"]) == {"blocks.0.router.weight"}
    assert not found["router"]["hidden"]
    stacks = {f"{experts}.{part}.weight" for part in ("gate", "input", "output")}
    assert names(model, found["hidden"]) == stacks
    biases = {f"{experts}.{part}.bias" for part in ("gate", "input", "output")}
    assert names(model, found["vector"]) == {*biases, "blocks.0.router.bias"}
    assert found["vector"]["weight_decay"] == 0
