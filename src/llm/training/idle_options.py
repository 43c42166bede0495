"""Notes about options that change nothing in the model of a run, so that a comparison would show no difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from llm.config.overrides import key_of
from llm.models.gpt import GPT
from llm.nn.layer_schedule import Layer
from llm.nn.masks import Predicate, causal, is_same_function, visible_keys

LONGEST = 4096  # tokens; masks are compared up to this length of the context
# Sizes that only some layers have.
HEADS = ("size.num_heads", "size.num_kv_heads")


def idle_options(config: DictConfig, model: nn.Module, typed: Sequence[str]) -> Iterator[str]:
    """Yield a note for each option without an effect.

    Args:
        config: the configuration of the run.
        model: the model that was built of it.
        typed: the overrides of the command line.
    """
    body: Any = getattr(model, "body", model)
    if isinstance(body, GPT):
        yield from _idle_masks(body)
    resolved: Any = OmegaConf.to_container(config.model, resolve=True)
    yield from _equal_kinds(resolved)
    tree = str(OmegaConf.to_container(config.model, resolve=False))
    for key in HEADS:
        if key in map(key_of, typed) and f"${{{key}}}" not in tree:
            yield f"{key}: no layer of this model depends on it"


def _idle_masks(body: GPT) -> Iterator[str]:
    """Yield a note for each mask that hides nothing from a causal model at its context length."""
    masks = {"model.mask": body.mask}
    for kind, block in zip(body.blocks.schedule, body.blocks, strict=True):
        if (mask := getattr(block, "mask", None)) is not None:
            masks[f"model.layers.{kind}.mask"] = mask
    length = body.context_length
    for key, mask in masks.items():
        if length <= LONGEST and not is_same_function(mask, causal) and _is_causal(mask, length):
            yield (
                f"{key}: hides nothing in a context of {length} tokens; use fewer tokens in the mask, or a longer "
                "size.context_length"
            )


def _is_causal(mask: Predicate, length: int) -> bool:
    # The whole mask grows with the square of the length, and one row often suffices.
    if visible_keys(mask, length) < length:
        return False
    positions = torch.arange(length, device="cpu")
    return torch.equal(mask(positions, positions), causal(positions, positions))


def _equal_kinds(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for each kind of layers with the same parts as an earlier one."""
    parts = [field.name for field in fields(Layer)]
    seen: list[tuple[str, dict[str, Any]]] = []
    for name, kind in (model.get("layers") or {}).items():
        own = {part: kind.get(part) or model.get(part) for part in parts}
        if same := next((other for other, theirs in seen if theirs == own), None):
            yield f"model.layers: {same} and {name} are the same, so their order in model.pattern changes nothing"
        seen.append((name, own))
