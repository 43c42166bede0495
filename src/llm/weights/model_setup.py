"""How a model begins that does not begin at random: pretrained weights, then an adapter."""

from torch import nn

from llm.adapters.base import Adapter
from llm.weights.base import Weights


def initialize(model: nn.Module, weights: Weights | None, *, adapter: Adapter | None) -> None:
    """Fill the language model inside a task's model, then adapt the whole, in place.

    What the weights know nothing of, such as the new head of a classifier, stays as it was drawn, and
    an adapter leaves it trainable.

    Args:
        model: a language model, or a model around one, its `body`.
        weights: where the language model's parameters come from; None leaves those drawn.
        adapter: freezes what there is and adds what is trained; None trains everything.

    Raises:
        ConfigError: the weights do not fit.
        ValueError: the adapter does not.
    """
    body = getattr(model, "body", None)
    if weights is not None:
        weights.load(model if body is None else body)
    if adapter is not None:
        names = (name for name, _ in model.named_parameters())
        adapter.apply(
            model, new=[name for name in names if body is not None and not name.startswith("body.")]
        )
