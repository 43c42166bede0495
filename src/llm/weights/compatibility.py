"""Checks that a model of ours has only parts that GPT-2 or Llama have."""

from collections.abc import Container
from typing import Any, NamedTuple

from torch import nn

from llm.config.errors import ConfigError
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.block import Block
from llm.nn.layer_schedule import describe_schedule
from llm.nn.masks import causal, is_same_function
from llm.nn.residual import pre_norm
from llm.nn.value_residual import ValueResidual


class ModelPart(NamedTuple):
    """A part of a model, and whether a published family has it.

    Attributes:
        key: its key in the configuration.
        found: the part.
        fits: whether the family has it.
    """

    key: str
    found: Any
    fits: bool


def require(family: str, *parts: ModelPart) -> None:
    """Require that a family of models has all these parts.

    Raises:
        ConfigError: the family does not have a part; the error names the first one.
    """
    for part in parts:
        if not part.fits:
            raise ConfigError(
                f"{part.key}: {_shown(part.found)} has no counterpart in {family}, so this model cannot be "
                "exported; use its run folder, which llm generate, llm evaluate and weights=run read"
            )


def decoder_parts(
    model: GPT, *, norm: type, feed_forward: type, activations: Container[Any]
) -> list[ModelPart]:
    """Return the parts that both GPT-2 and Llama restrict.

    Args:
        model: a model with attention.
        norm: the family's class of norms.
        feed_forward: its class of feed-forward layers.
        activations: its activation functions.
    """
    block: Any = model.blocks[0]
    attention: Attention = block.attention
    norms = (block.attention_norm, block.feed_forward_norm, model.final_norm)
    epsilons = {getattr(each, "eps", None) for each in norms}
    kernel = attention.kernel
    softcap = getattr(kernel, "keywords", {}).get("softcap", getattr(kernel, "softcap", None))
    mixed = next((m for m in model.modules() if isinstance(m, ValueResidual)), None)
    ours = block.feed_forward
    activation = getattr(ours, "activation", None)
    return [
        ModelPart("model.embedding", model.embedding, type(model.embedding) is nn.Embedding),
        ModelPart("model.head", model.head, type(model.head) is nn.Linear),
        ModelPart("model.norm", block.attention_norm, type(block.attention_norm) is norm),
        ModelPart("model.block", block, type(block) is Block),
        ModelPart("model.residual", block.residual, unwrap_partial(block.residual) is pre_norm),
        ModelPart("model.final_norm", model.final_norm, type(model.final_norm) is norm),
        ModelPart("model.final_norm.eps", model.final_norm, len(epsilons) == 1),
        ModelPart("model.mask", model.mask, is_same_function(model.mask, causal)),
        ModelPart("model.attention.kernel.softcap", softcap, softcap is None),
        ModelPart("model.attention.qk_norm", attention.query_norm, attention.query_norm is None),
        ModelPart(
            "model.attention.output_gate", attention.output_gate, attention.output_gate is None
        ),
        ModelPart("model.attention.sinks", attention.sinks, attention.sinks is None),
        # The first layer has none, whatever the others have.
        ModelPart("model.attention.value_residual", mixed, mixed is None),
        ModelPart("model.feed_forward", ours, type(ours) is feed_forward),
        ModelPart(
            "model.feed_forward.activation", activation, unwrap_partial(activation) in activations
        ),
    ]


def first_block(model: GPT, *, family: str) -> tuple[Any, Attention]:
    """Return the first block, and its attention layer.

    Raises:
        ConfigError: the blocks differ, or mix tokens by something other than attention with keys and values.
    """
    block: Any = model.blocks[0]
    kinds = describe_schedule(model.blocks.schedule)
    has_shared_parts = len({*model.blocks.schedule}) == 1 and not (block.position or block.mask)
    require(
        family,
        ModelPart("model.layers", kinds, has_shared_parts),
        ModelPart("model.attention", block.attention, type(block.attention) is Attention),
    )
    return block, block.attention


def unwrap_partial(function: Any) -> Any:
    """Return the function inside a partial, or the function itself."""
    return getattr(function, "func", function)


def dtype_of(model: Any) -> str:
    """Return the dtype of a model's parameters, such as `float32`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _shown(found: Any) -> str:
    if isinstance(found, int | float | str):
        return str(found)
    return getattr(unwrap_partial(found), "__name__", type(found).__name__)
