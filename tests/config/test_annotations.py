"""Whether plain values fit annotations: equal to beartype, and nothing is refused that cannot be checked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, Protocol, TypedDict, TypeVar, runtime_checkable

import pytest
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import Float
from torch import Tensor, nn

from llm.config.annotations import accepts, parameters


class Static(Protocol):
    """A protocol that `isinstance` cannot check."""

    def run(self) -> None: ...


@runtime_checkable
class Named(Protocol):
    """A protocol with an attribute, which `issubclass` cannot check."""

    name: str


class Options(TypedDict):
    """A dictionary with known keys."""

    depth: int


HINTS = [
    *(int, float, complex, bool, str, bytes, None, nn.Module, Float[Tensor, "B T"]),
    *(Literal[1, "auto", None], Literal[True], Annotated[int, "positive"]),
    *(Callable, Callable[[Any], nn.Module], type[int]),
    *(Sequence, Sequence[str], Sequence[int], Iterable[int], Sequence[Sequence[str]]),
    *(int | None, Literal["auto", 32] | float, str | Sequence[str], Mapping[str, int]),
]
SCALARS = [None, 0, 1, -3, 0.5, float("nan"), "", "x", "auto", "32", 32, b"x"]


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_scalars_fit_the_annotations_that_beartype_accepts(hint):
    found = [accepts(hint, value) for value in SCALARS]
    tower = BeartypeConf(is_pep484_tower=True)
    assert found == [is_bearable(value, hint, conf=tower) for value in SCALARS]


@pytest.mark.parametrize("hint", [int, float, int | None, Literal[1, "auto"], Annotated[int, "m"]])
def test_a_bool_is_not_a_number(hint):
    assert not accepts(hint, True)
    assert accepts(hint | bool, True)


@pytest.mark.parametrize("hint", [Any, object, TypeVar("T"), "Later", Static, Named])
def test_annotations_that_cannot_be_checked_accept_all_values(hint):
    assert all(accepts(hint, value) for value in [*SCALARS, ["x"], {"x": 1}])


def test_new_type_counts_as_its_base():
    assert accepts(NewType("Steps", int), 3)
    assert not accepts(NewType("Steps", int), "many")


def test_typed_dictionary_accepts_only_dictionaries():
    assert accepts(Options, {"depth": 3})
    assert not any(accepts(Options | None, value) for value in ("fast", 3, [3]))


class WithoutConstructor(nn.Module):
    """A module that takes no argument."""


def test_a_module_without_a_constructor_takes_no_argument_also_after_a_compilation(monkeypatch):
    assert parameters(WithoutConstructor) == {}

    # torch.compile replaces the constructor, for the rest of the process.
    def constructor(self, *args, **kwargs):
        pass

    monkeypatch.setattr(nn.Module, "__init__", constructor)
    assert parameters(WithoutConstructor) == {}
