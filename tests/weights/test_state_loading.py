"""Loading of a state: strict, in place, with new rows for new tokens."""

import pytest
import torch
from torch import nn

from llm.checkpoints.lazy_tensor import in_memory
from llm.config.errors import ConfigError
from llm.weights.state_loading import TABLES, fill


@pytest.fixture
def state(build):
    return build(vocab_size=97).state_dict()


def test_loading_keeps_the_parameters_and_their_precision(build, state):
    model = build().bfloat16()
    before = dict(model.named_parameters())
    fill(model, in_memory(state))
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert parameter.requires_grad
        assert torch.equal(parameter, state[name].bfloat16())
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("tie", ["true", "false"])
def test_new_rows_of_a_table_are_drawn_like_the_old(build, tie):
    small = build(f"model.tie_weights={tie}", vocab_size=90)
    large, again = (build(f"model.tie_weights={tie}", vocab_size=597) for _ in range(2))
    for model in (large, again):
        fill(model, in_memory(small.state_dict()), grow=TABLES)
    for name in ("embedding.weight", "head.weight"):
        old, new = small.state_dict()[name], large.state_dict()[name]
        assert torch.equal(new[:90], old)
        assert (new[90:].mean(0) - old.mean(0)).norm() < 0.2 * old.std(0).norm()
        torch.testing.assert_close(new[90:].std(0).mean(), old.std(0).mean(), rtol=0.1, atol=0)
        assert len(new.unique(dim=0)) == 597, "no two rows are equal"
        assert torch.equal(new, again.state_dict()[name])
    tokens = torch.randint(90, (2, 9))
    torch.testing.assert_close(large(tokens)[..., :90], small(tokens), rtol=0, atol=1e-6)


def test_table_grows_only_if_allowed(build, state):
    with pytest.raises(
        ConfigError, match=r"embedding.weight needs \(98, 64\), but \(97, 64\) is stored"
    ):
        fill(build(vocab_size=98), in_memory(state))


def test_tables_do_not_shrink_and_other_tensors_do_not_grow(build, state):
    with pytest.raises(
        ConfigError, match=r"embedding.weight needs \(96, 64\), but \(97, 64\) is stored"
    ):
        fill(build(vocab_size=96), in_memory(state), grow=TABLES)
    with pytest.raises(
        ConfigError, match=r"position.embedding.weight needs \(65, 64\), but \(64, 64\) is stored"
    ):
        fill(build("size.context_length=65"), in_memory(state), grow=TABLES)


def test_failed_load_changes_nothing(build, state):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["final_norm.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(ConfigError) as error:
        fill(model, in_memory(state))
    assert [line.strip() for line in error.value.problems[1:]] == [
        "missing: a tensor for final_norm.bias",
        "unexpected: extra",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_body_without_a_head_loads_without_head_weights(build, state):
    model = build()
    model.head = nn.Identity()
    fill(model, in_memory(state))
    assert torch.equal(model.embedding.weight, state["embedding.weight"])
    state["tail.weight"] = state["head.weight"]
    with pytest.raises(ConfigError, match=r"unexpected: tail.weight"):
        fill(model, in_memory(state))
