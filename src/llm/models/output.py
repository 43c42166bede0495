"""What a body hands to its head, whatever the architecture."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from llm.nn.cache import Cache


class Output(NamedTuple):
    """The result of `hidden`.

    Attributes:
        hidden: (B, T, C), the last states, ready for the head.
        cache: what a next call may go on from; None where none was given.
        auxiliary_loss: a scalar to add to the loss; None where the architecture has none.
    """

    hidden: Float[Tensor, "B T C"]
    cache: Cache | None = None
    auxiliary_loss: Float[Tensor, ""] | None = None
