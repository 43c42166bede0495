"""Folders of published models, and what both libraries read from them."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hard_texts import hard_texts  # noqa: F401
from published_families import VARIANTS, Exact, Family

from llm.tokenizers.byte import ByteTokenizer
from llm.weights.tokenizer_files import write_tokenizer


class Published(NamedTuple):
    """A variant of a family, its folder, and the models that both libraries read from it."""

    family: Family
    folder: Path
    theirs: Any
    ours: Any

    @property
    def weights(self) -> Any:
        """Our reader of the folder, which must not be written to."""
        return self.family.weights(self.folder)


@pytest.fixture(scope="session", params=list(VARIANTS))
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Published:
    """The folder of one variant."""
    family = VARIANTS[request.param]
    theirs = family.make()
    folder = tmp_path_factory.mktemp("published")
    theirs.save_pretrained(folder)
    write_tokenizer(ByteTokenizer(), folder, context_length=64)
    return Published(family, folder, theirs, family.weights(folder).model())


@pytest.fixture(scope="session")
def exact(published: Published) -> Exact:
    """Their model in float64."""
    return Exact(published.folder)


@pytest.fixture
def ours(published: Published) -> Any:
    """Our model in float64."""
    return copy.deepcopy(published.ours).double()


@pytest.fixture
def theirs(published: Published) -> Any:
    """Their model in float32."""
    return copy.deepcopy(published.theirs)


@pytest.fixture
def weights(published: Published) -> Any:
    """The reader of the folder, which must not be written to."""
    return published.weights
