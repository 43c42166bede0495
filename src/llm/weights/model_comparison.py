"""What distinguishes two models, besides the values of their parameters.

A model is exported as a family if the model that the family's config.json describes has the same parts. So every part
is compared, not those that someone thought of: an attribute that this file does not know counts as a difference.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from llm.models.gpt import GPT
from llm.nn.block import Block
from llm.nn.masks import is_same_mask
from llm.nn.positions import Position, is_same_position
from llm.nn.token_mixer import TokenMixer
from llm.weights.model_parts import mask_of, position_of, softcap_of, unwrap_partial

# Attributes that do not change what a trained model computes: how it was initialized or is trained, which kernel
# computes the same, and what is derived from the other parts.
WITHOUT_EFFECT = frozenset(
    {
        *("training", "dropout", "balancing", "records", "recurrence", "steps"),
        *("schedule", "links", "offers", "rotated_dim"),
    }
)
# Our modules and attributes, and their keys in the configuration.
KEYS = {
    r"^blocks\.\d+$": "block",
    r"^blocks\.\d+\.": "",
    r"\.kernel$": ".kernel.softcap",
    r"^(attention_norm|feed_forward_norm|attention_output_norm|feed_forward_output_norm)\b": "norm",
    r"^attention\.(query|key)_norm\b": "attention.qk_norm",
    r"\.query_key_value\.bias$": ".qkv_bias",
    r"\.(output|input|gate)\.bias$": ".bias",
    r"\.(output|input|gate)\.(in|out)_features$": ".hidden_dim",
}


class Difference(NamedTuple):
    """A part that differs.

    Attributes:
        key: its key in the configuration.
        found: what the first model has.
        needed: what the second one has.
    """

    key: str
    found: Any
    needed: Any


def differences(ours: nn.Module, other: nn.Module) -> list[Difference]:
    """Return the parts of `ours` that differ from those of `other`, each key once.

    Biases that only `other` has are not differences: they can be 0.
    """
    found: dict[str, Difference] = {}
    for each in _differences(ours, other, path="", models=(ours, other)):
        found.setdefault(each.key, each)
    return [*found.values()]


def missing_biases(ours: nn.Module, other: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of biases that only `other` has, by name."""
    own = ours.state_dict().keys()
    state = other.state_dict()
    return {
        name: tensor.shape
        for name, tensor in state.items()
        if name not in own and name.endswith("bias")
    }


def _differences(
    ours: Any, other: Any, *, path: str, models: tuple[Any, Any]
) -> Iterator[Difference]:
    """Yield the differences of two modules at the same place of their models."""
    if type(ours) is not type(other):
        yield Difference(_key(path), ours, other)
        if not (isinstance(ours, Block) and isinstance(other, Block)):
            return
    for name in sorted({*_settings(ours), *_settings(other)}):
        pair = (getattr(module, name, None) for module in (ours, other))
        found, needed = (softcap_of(value) if name == "kernel" else value for value in pair)
        if not _is_same(found, needed):
            yield Difference(_key(_joined(path, name)), found, needed)
    if isinstance(ours, Block):
        yield from _placement(ours, other, path=path, models=models)
    yield from _tensors(ours, other, path=path)
    for name, child, counterpart in _children(ours, other):
        yield from _differences(child, counterpart, path=_joined(path, name), models=models)


def _placement(
    ours: Block, other: Block, *, path: str, models: tuple[GPT, GPT]
) -> Iterator[Difference]:
    """Yield the differences of the position and the mask of two layers, which may be those of their models."""
    if not ours.attention.attends:
        return
    mask, needed = (
        mask_of(model, block) for model, block in zip(models, (ours, other), strict=True)
    )
    if not is_same_mask(mask, needed):
        yield Difference(_key(_joined(path, "mask")), mask, needed)
    first, second = (
        position_of(model, block) for model, block in zip(models, (ours, other), strict=True)
    )
    if is_same_position(first, second):
        return
    if type(first) is not type(second):
        yield Difference(_key(_joined(path, "position")), first, second)
        return
    yield from _differences(first, second, path=_joined(path, "position"), models=models)


def _tensors(ours: nn.Module, other: nn.Module, *, path: str) -> Iterator[Difference]:
    """Yield the differences of names and shapes of two modules' own tensors."""
    found, needed = (
        dict([*each.named_parameters(recurse=False), *each.named_buffers(recurse=False)])
        for each in (ours, other)
    )
    for name in sorted({*found, *needed}):
        if name not in found and name == "bias":
            continue
        shapes = [tuple(t[name].shape) if name in t else None for t in (found, needed)]
        if shapes[0] != shapes[1]:
            shown = "a bias" if name == "bias" else shapes[0]
            yield Difference(_key(_joined(path, name)), shown, shapes[1])


def _settings(module: nn.Module) -> set[str]:
    """Return the names of a module's attributes that may matter."""
    names = {name for name in vars(module) if not name.startswith("_")} - WITHOUT_EFFECT
    names -= {"bias"}  # None if there is no such tensor
    if isinstance(module, Block):
        names -= {"position", "mask"}  # compared together with those of the model
    if isinstance(module, GPT):
        names -= {"mask"}
    if not isinstance(module, TokenMixer):
        names -= {"kernel"}  # that of a norm or of experts, which all compute the same
    return names


def _children(ours: Any, other: Any) -> Iterator[tuple[str, nn.Module | None, nn.Module | None]]:
    """Yield the names of the modules that matter, and those of two modules; None if one has no such module."""
    found, needed = (dict(module.named_children()) for module in (ours, other))
    ignored = set(WITHOUT_EFFECT)
    # Positions that act in the layers are compared there.
    if isinstance(ours, Block) or (
        isinstance(ours, GPT) and _is_relative(ours) and _is_relative(other)
    ):
        ignored.add("position")
    for name in sorted({*found, *needed} - ignored):
        yield name, found.get(name), needed.get(name)


def _is_relative(model: Any) -> bool:
    """Return whether the position encoding of a model acts in the layers and not on the embeddings."""
    return type(model.position).embed is Position.embed


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; functions also if they are in partials with equal arguments."""
    if one == other:
        return True
    same_arguments = _arguments(one) == _arguments(other)
    return callable(one) and unwrap_partial(one) is unwrap_partial(other) and same_arguments


def _arguments(function: Any) -> tuple[Any, ...]:
    return (function.args, function.keywords) if isinstance(function, partial) else ((), {})


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _key(path: str) -> str:
    """Return the key of a part in the configuration."""
    for pattern, replacement in KEYS.items():
        path = re.sub(pattern, replacement, path)
    return f"model.{path}" if path else "model"
