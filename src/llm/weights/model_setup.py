"""Initialization of a model from pretrained weights, followed by an adapter."""

from torch import nn

from llm.adapters.base import Adapter
from llm.weights.base import Weights


def initialize(model: nn.Module, weights: Weights | None, *, adapter: Adapter | None) -> None:
    """Fill the language model inside a task's model, then adapt the whole model, in place.

    Other parameters, such as a classifier's new head, keep their random initialization and stay trainable under an
    adapter.

    Args:
        model: a language model, or a model with one as its `body`.
        weights: the language model's weights; None keeps the random ones.
        adapter: freezes the model and adds trainable parameters; None trains everything.

    Raises:
        ConfigError: the weights do not fit.
        ValueError: the adapter does not fit.
    """
    body = getattr(model, "body", None)
    if weights is not None:
        weights.load(model if body is None else body)
    if adapter is not None:
        names = (name for name, _ in model.named_parameters())
        adapter.apply(
            model, new=[name for name in names if body is not None and not name.startswith("body.")]
        )
