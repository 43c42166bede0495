"""The tensors of a GGUF file: those to write for a model, and those of a file by their published names."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm.checkpoints.lazy_tensor import LazyTensor
from llm.config.errors import ConfigError
from llm.weights.families import FAMILIES, Match
from llm.weights.gguf_families import GGUF_FAMILIES, GGUFFamily, gguf_values
from llm.weights.gguf_file import GGUFFile
from llm.weights.gguf_rotation import FREQUENCIES, frequency_factors
from llm.weights.huggingface import Settings


@dataclass(frozen=True)
class Planned:
    """A tensor to write.

    Attributes:
        name: its name in the file.
        parts: the published tensors, one or those of all experts.
        family: the family, which stores it.
        settings: the content of config.json.
    """

    name: str
    parts: list[Tensor]
    family: GGUFFamily
    settings: Settings = field(repr=False)

    def tensor(self, device: str | None = None) -> Tensor:
        """Return the tensor as it is stored; on the device `meta` its shape alone."""
        parts = [part if device is None else part.to(device) for part in self.parts]
        joined = torch.stack(parts) if "_exps." in self.name else parts[0]
        return self.family.layout.stored(self.name, joined, self.settings)


def plan(match: Match, family: GGUFFamily) -> Iterator[Planned]:
    """Yield the tensors of a model in the order of the published ones, and those that llama.cpp needs beside them."""
    tensors = match.tensors()
    num_layers = gguf_values(match, family)["block_count"]
    names = family.names(tensors, num_layers=num_layers)
    if (rope := match.settings.get("rope_parameters")) and "rope_type" in rope:
        factors = frequency_factors(rope, head_dim=match.settings["head_dim"])
        if factors is not None:
            yield Planned(FREQUENCIES, [factors], family, match.settings)
    for name, theirs in names.items():
        yield Planned(name, [tensors[each] for each in theirs], family, match.settings)
    if family.needs_output and "output.weight" not in names:
        (embedding,) = names["token_embd.weight"]
        yield Planned("output.weight", [tensors[embedding]], family, match.settings)


def published_tensors(file: GGUFFile, settings: Settings) -> dict[str, LazyTensor]:
    """Return the tensors of a file by their published names, unread; unknown ones keep their names.

    Raises:
        ConfigError: the layers are not numbered as the file says.
    """
    family = GGUF_FAMILIES[settings["model_type"]]
    number = settings[next(ours for ours, key in family.keys.items() if key == "block_count")]
    ours = FAMILIES[settings["model_type"]]
    rules = ours.key_map({**ours.defaults, **settings}).rules
    expected = [
        name
        for rule in rules
        for layer in (range(number) if "{}" in rule.ours else [0])
        for name in rule.at(layer).theirs
    ]
    names = family.names(expected, num_layers=number)
    tensors: dict[str, LazyTensor] = {}
    for name, stored in file.tensors.items():
        if name == FREQUENCIES:
            continue
        theirs = names.get(name, [name])
        parts = stored.unbind() if "_exps." in name else [stored.lazy()]
        if len(parts) != len(theirs):
            raise ConfigError(
                f"weights.path: {name} has {len(parts)} experts, but the model has {len(theirs)}; "
                "download the file again"
            )
        for each, part in zip(theirs, parts, strict=True):
            tensors[each] = _published(name, part, family, settings)
    return tensors


def _published(name: str, part: LazyTensor, family: GGUFFamily, settings: Settings) -> LazyTensor:
    """Return a tensor in its published form, unread; one that cannot have it keeps its shape, which is reported."""
    try:
        outline = family.layout.published(name, torch.empty(part.shape, device="meta"), settings)
    except RuntimeError:
        return part
    return LazyTensor(
        name, tuple(outline.shape), lambda: family.layout.published(name, part.read(), settings)
    )
