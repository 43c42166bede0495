import pytest
import torch
from torch import nn

from llm.checkpoints.lazy_tensor import LazyTensor, in_memory
from llm.config.errors import ConfigError
from llm.weights.key_map import Concatenated, KeyMap, QueryKeyValue, Rule, Transposed
from llm.weights.packed_rows import PackedRows

MAP = KeyMap(
    rules=(
        Rule("table", ("theirs.table",)),
        Rule("copy", ("theirs.copy",)),
        Transposed("blocks.{}.matrix", ("theirs.h.{}.matrix",)),
        QueryKeyValue(
            "blocks.{}.qkv", tuple(f"theirs.h.{{}}.{part}" for part in "qkv"), queries_to_keys=2
        ),
    ),
    shared={"theirs.copy": "theirs.table"},
    ignored=("theirs.h.{}.buffer",),
    prefix="theirs.",
)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(6, 4))
        self.qkv = nn.Parameter(torch.zeros(8, 4))


class Model(nn.Module):
    """A model with the parameter names of the map."""

    def __init__(self, num_layers=2, rows=5, tied=False):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, 4))
        self.copy = self.table if tied else nn.Parameter(torch.zeros(rows, 4))
        self.blocks = nn.ModuleList(Layer() for _ in range(num_layers))


def theirs(num_layers=2):
    state = {"theirs.table": torch.randn(5, 4), "theirs.copy": torch.randn(5, 4)}
    for layer in range(num_layers):
        state[f"theirs.h.{layer}.matrix"] = torch.randn(4, 6)
        parts = (("q", 4), ("k", 2), ("v", 2))
        state |= {f"theirs.h.{layer}.{p}": torch.randn(n, 4) for p, n in parts}
    return state


def unreadable(state):
    """Tensors with known shapes that must not be read."""

    def read():
        raise AssertionError("a tensor was read before all was checked")

    return {name: LazyTensor(name, tuple(tensor.shape), read) for name, tensor in state.items()}


def problems(state, model):
    with pytest.raises(ConfigError) as error:
        MAP.load(unreadable(state), model)
    head, *lines = error.value.problems
    assert f"{len(lines)} problem" in head
    return {line.strip() for line in lines}


@pytest.mark.parametrize("num_layers", [0, 1, 12])
def test_import_and_export_restore_the_state(num_layers):
    state, model = theirs(num_layers), Model(num_layers)
    MAP.load(in_memory(state), model)
    back = MAP.to_theirs(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_transforms_transpose_and_join_tensors():
    state, model = theirs(), Model()
    MAP.load(in_memory(state), model)
    assert torch.equal(model.blocks[1].matrix, state["theirs.h.1.matrix"].T)
    assert torch.equal(model.blocks[1].qkv[4:6], state["theirs.h.1.k"])


def test_the_prefix_may_be_left_out():
    state, model = theirs(), Model()
    MAP.load(in_memory({n.removeprefix("theirs."): tensor for n, tensor in state.items()}), model)
    assert torch.equal(model.blocks[1].qkv[4:6], state["theirs.h.1.k"])


def test_shared_tensors_may_be_absent_and_ignored_ones_present():
    state, model = theirs(), Model()
    del state["theirs.copy"]
    state["theirs.h.0.buffer"] = torch.zeros(1)
    MAP.load(in_memory(state), model)
    assert torch.equal(model.copy, state["theirs.table"])


def test_all_problems_are_named_in_one_error_before_anything_is_read():
    state = theirs(3)
    del state["theirs.h.0.q"], state["theirs.h.1.matrix"], state["theirs.h.1.v"]
    state["theirs.h.2.k"] = torch.randn(2, 3)
    state["theirs.h.2.more"] = state["other"] = torch.zeros(1)
    found = problems(state, Model(3))
    assert {line for line in found if not line.startswith("wrong")} == {
        "missing: theirs.h.0.q",
        "missing: theirs.h.1.matrix",
        "missing: theirs.h.1.v",
        "unexpected: theirs.h.2.more",
        "unexpected: other",
    }
    (wrong,) = (line for line in found if line.startswith("wrong shape"))
    assert "theirs.h.2.k (2, 3)" in wrong
    assert "blocks.2.qkv" in wrong


def test_a_model_is_checked_for_shapes_and_layers():
    assert problems(theirs(0), Model(0, rows=6)) == {
        f"wrong shape: {name} needs (6, 4), but (5, 4) is stored in theirs.{name}"
        for name in ("table", "copy")
    }
    assert "unexpected: theirs.h.1.matrix" in problems(theirs(2), Model(1))
    assert "missing: a tensor for blocks.1.matrix" in problems(theirs(1), Model(2))


def test_huge_layer_number_is_reported():
    """An untrusted file may name layer 10¹²."""
    assert problems({**theirs(1), "theirs.h.999999999999.matrix": torch.zeros(4, 6)}, Model(1))


def test_tied_model_needs_equal_tensors():
    state, model = theirs(0), Model(0, tied=True)
    with pytest.raises(ConfigError, match=r"untied: theirs.copy"):
        MAP.load(in_memory(state), model)
    state["theirs.copy"] = state["theirs.table"].clone()
    MAP.load(in_memory(state), model)
    assert model.copy is model.table


def test_export_is_strict():
    ours = Model().state_dict()
    del ours["blocks.0.qkv"]
    ours["blocks.0.lora"] = torch.zeros(1)
    with pytest.raises(ConfigError, match=r"(?s)missing: blocks.0.qkv.*unexpected: blocks.0.lora"):
        MAP.to_theirs(ours)


PACKED = KeyMap(
    rules=(
        Rule("gate", ("theirs.both[gate]",)),
        Concatenated("joined", ("theirs.both[query]", "theirs.value"), (2, 3)),
    ),
    shared={},
    packed=(PackedRows("theirs.both", 2, {"query": 1, "gate": 2}),),
    left_out=("mtp.",),
    prefix="theirs.",
)


class Packed(nn.Module):
    """A model with the parameter names of the map."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(4, 4))
        self.joined = nn.Parameter(torch.zeros(5, 4))


@pytest.mark.parametrize("prefix", ["theirs.", ""])
def test_a_tensor_that_contains_several_is_divided_and_restored(prefix):
    state = {"both": torch.randn(6, 4), "value": torch.randn(3, 4)}
    model = Packed()
    PACKED.load(in_memory({prefix + name: tensor for name, tensor in state.items()}), model)
    assert torch.equal(model.gate, state["both"][[1, 2, 4, 5]])
    assert torch.equal(model.joined, torch.cat((state["both"][[0, 3]], state["value"])))
    back = PACKED.to_theirs(model.state_dict())
    assert back.keys() == {"theirs.both", "theirs.value"}
    assert all(torch.equal(back[f"theirs.{name}"], state[name]) for name in state)


def test_problems_of_a_tensor_that_contains_several_are_named():
    for state, expected in (
        ({"theirs.value": (3, 4)}, {"missing: theirs.both[gate]", "missing: theirs.both[query]"}),
        (
            {"theirs.both": (7, 4), "theirs.value": (3, 4)},
            {
                "wrong shape: gate needs (4, 4), but (7, 4) is stored in theirs.both",
                "wrong shape: theirs.both (7, 4), theirs.value (3, 4) cannot form joined",
            },
        ),
    ):
        stored = unreadable({name: torch.zeros(shape) for name, shape in state.items()})
        with pytest.raises(ConfigError) as error:
            PACKED.load(stored, Packed())
        assert {line.strip() for line in error.value.problems[1:]} == expected


def test_layers_that_ours_does_not_have_are_left_out():
    state = {"theirs.both": torch.randn(6, 4), "theirs.value": torch.randn(3, 4)}
    PACKED.load(in_memory({**state, "mtp.layers.0.norm": torch.zeros(2)}), Packed())
    with pytest.raises(ConfigError, match=r"unexpected: other.mtp.norm"):
        PACKED.load(in_memory({**state, "other.mtp.norm": torch.zeros(2)}), Packed())
