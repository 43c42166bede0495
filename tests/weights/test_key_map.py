import pytest
import torch
from torch import nn

from llm.weights.key_map import KeyMap, QueryKeyValue, Rule, Transposed

MAP = KeyMap(
    rules=(
        Rule("table", ("theirs.table",)),
        Rule("copy", ("theirs.copy",)),
        Transposed("blocks.{}.matrix", ("h.{}.matrix",)),
        QueryKeyValue("blocks.{}.qkv", ("h.{}.q", "h.{}.k", "h.{}.v"), queries_to_keys=2),
    ),
    shared={"theirs.copy": "theirs.table"},
    ignored=("h.{}.buffer",),
)


def theirs(num_layers=2):
    state = {"theirs.table": torch.randn(5, 4), "theirs.copy": torch.randn(5, 4)}
    for layer in range(num_layers):
        state[f"h.{layer}.matrix"] = torch.randn(4, 6)
        state |= {f"h.{layer}.{p}": torch.randn(n, 4) for p, n in (("q", 4), ("k", 2), ("v", 2))}
    return state


@pytest.mark.parametrize("num_layers", [0, 1, 12])
def test_there_and_back_is_nothing_changed(num_layers):
    state = theirs(num_layers)
    back = MAP.to_theirs(MAP.to_ours(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_each_transform():
    state = theirs()
    ours = MAP.to_ours(state)
    assert torch.equal(ours["blocks.1.matrix"], state["h.1.matrix"].T)
    assert torch.equal(ours["blocks.1.qkv"][4:6], state["h.1.k"])
    assert ours.keys() == {
        "table",
        "copy",
        *(f"blocks.{layer}.{part}" for layer in range(2) for part in ("matrix", "qkv")),
    }


def test_what_is_shared_may_be_absent_and_what_is_ignored_present():
    state = theirs()
    del state["theirs.copy"]
    state["h.0.buffer"] = torch.zeros(1)
    assert torch.equal(MAP.to_ours(state)["copy"], state["theirs.table"])
    assert "h.0.buffer" in state


def test_all_problems_are_named_in_one_error():
    state = theirs(3)
    del state["h.0.q"], state["h.1.matrix"], state["h.1.v"]
    state["h.2.k"] = torch.randn(2, 3)
    state["h.2.more"] = state["other"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"6 problems") as error:
        MAP.to_ours(state)
    lines = {line.strip() for line in str(error.value).splitlines()[1:]}
    assert {line for line in lines if not line.startswith("wrong")} == {
        "missing: h.0.q",
        "missing: h.1.matrix",
        "missing: h.1.v",
        "left over: h.2.more",
        "left over: other",
    }
    (wrong,) = (line for line in lines if line.startswith("wrong shape"))
    assert "h.2.k (2, 3)" in wrong
    assert "blocks.2.qkv" in wrong


def test_the_way_back_is_strict_too():
    ours = MAP.to_ours(theirs())
    del ours["blocks.0.qkv"]
    ours["blocks.0.lora"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"(?s)missing: blocks.0.qkv.*left over: blocks.0.lora"):
        MAP.to_theirs(ours)


class Holder(nn.Module):
    """A model with the map's names and no layers."""

    def __init__(self, rows=5, tied=False):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, 4))
        self.copy = self.table if tied else nn.Parameter(torch.zeros(rows, 4))


def test_a_model_is_checked_for_shapes_layers_and_ties():
    state = theirs(0)
    MAP.to_ours(state, Holder())
    with pytest.raises(ValueError, match=r"theirs.table makes \(5, 4\), table is \(6, 4\)"):
        MAP.to_ours(state, Holder(rows=6))
    with pytest.raises(ValueError, match=r"left over: h.0.matrix"):
        MAP.to_ours(theirs(1), Holder())
    with pytest.raises(ValueError, match=r"untied: theirs.copy"):
        MAP.to_ours(state, Holder(tied=True))
    del state["theirs.copy"]
    MAP.to_ours(state, Holder(tied=True))


def test_a_model_with_more_parameters_says_which():
    model = Holder()
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"missing: what would make extra"):
        MAP.to_ours(theirs(0), model)
