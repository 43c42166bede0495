"""Parameters that the constructors of all data modules of examples share."""

import pytest

from llm.config.annotations import parameters
from llm.data.examples.base import ExamplesDataModule
from llm.data.examples.collation import Padding
from llm.data.examples.instruction import InstructionDataModule
from llm.data.examples.labelled import LabelledDataModule
from llm.data.examples.preference import PreferenceDataModule
from llm.tokenizers.byte import ByteTokenizer


@pytest.mark.parametrize(
    "module", [InstructionDataModule, LabelledDataModule, PreferenceDataModule]
)
def test_signature_has_own_and_shared_parameters(module):
    found = parameters(module)
    shared = parameters(ExamplesDataModule)
    assert shared.keys() < found.keys()
    assert "shared" not in found
    for name in shared.keys() - {"validation_fraction", "test_fraction"}:
        assert found[name] == shared[name]


def test_unknown_argument_is_an_error():
    given = {"path": "a", "tokenizer": ByteTokenizer(), "context_length": 8, "collation": Padding()}
    with pytest.raises(TypeError, match="columsn"):
        LabelledDataModule(**given, columsn=None)


def test_own_parameters_come_before_shared_ones_of_that_name():
    fractions = ("validation_fraction", "test_fraction")
    defaults = [parameters(LabelledDataModule)[name].default for name in fractions]
    assert defaults == [0.1, 0.2]


def test_signature_of_a_constructor_without_shared_is_its_own():
    class Own(InstructionDataModule):
        def __init__(self, *, path: str) -> None:
            raise NotImplementedError

    class Inherited(InstructionDataModule):
        pass

    class Further(InstructionDataModule):
        def __init__(self, *, extra: int, **shared) -> None:
            raise NotImplementedError

    assert list(parameters(Own)) == ["path"]
    assert parameters(Inherited) == parameters(InstructionDataModule)
    assert parameters(Further).keys() - parameters(Inherited).keys() == {"extra"}
