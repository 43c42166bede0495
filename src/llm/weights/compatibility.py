"""Which parts of our model there are elsewhere too."""

from typing import Any, NamedTuple

from llm.config.errors import ConfigError
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.residual import pre_norm


class ModelPart(NamedTuple):
    """A part of a model.

    Attributes:
        key: its key in the configuration.
        found: what it is.
        fits: whether the other family of models has it.
    """

    key: str
    found: Any
    fits: bool


def require(family: str, *parts: ModelPart) -> None:
    """Refuse a model with a part that another family of models does not have.

    Raises:
        ConfigError: naming the first of them.
    """
    for part in parts:
        if not part.fits:
            raise ConfigError(
                f"{part.key}: {_shown(part.found)} has no counterpart in {family}, so this model cannot be "
                "exported"
            )


def in_every_decoder(model: GPT, norm: type) -> list[ModelPart]:
    """What GPT-2 and Llama have in common.

    Args:
        model: a model of ours; all its blocks are alike.
        norm: the class of its norms.
    """
    block, attention = first_block(model)
    norms = (block.attention_norm, block.feed_forward_norm, model.final_norm)
    epsilons = {getattr(each, "eps", None) for each in norms}
    return [
        ModelPart("model.norm", block.attention_norm, type(block.attention_norm) is norm),
        ModelPart("model.residual", block.residual, unwrap_partial(block.residual) is pre_norm),
        ModelPart("model.final_norm", model.final_norm, type(model.final_norm) is norm),
        ModelPart("model.final_norm.eps", model.final_norm, len(epsilons) == 1),
        ModelPart("model.mask", model.mask, model.mask_is_causal),
        ModelPart("model.attention.qk_norm", attention.query_norm, attention.query_norm is None),
    ]


def first_block(model: GPT) -> tuple[Any, Attention]:
    """A block, and its attention."""
    block: Any = model.blocks[0]
    return block, block.attention


def unwrap_partial(function: Any) -> Any:
    """A function behind the partial that a configuration makes of it."""
    return getattr(function, "func", function)


def dtype_of(model: Any) -> str:
    """The precision of a model's parameters, as `float32`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _shown(found: Any) -> str:
    if isinstance(found, int | str):
        return str(found)
    return getattr(unwrap_partial(found), "__name__", type(found).__name__)
