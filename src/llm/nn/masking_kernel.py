"""What a layer and its context ask of an attention kernel that takes masks in a form of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from llm.nn.masks import RowLimits


class KernelMask:
    """A mask in the form of one kernel; layers pass it on without looking inside."""


# A mask of attention, see `naive_attention`; None masks nothing.
Mask = Tensor | RowLimits | KernelMask | None


class MaskingKernel(ABC):
    """An attention kernel with masks of its own, which all layers of a kind share in a forward pass.

    It is called as `naive_attention` is, and may get such a mask, a tensor or no mask.
    """

    @abstractmethod
    def __call__(
        self,
        query: Float[Tensor, "B H T D"],
        key: Float[Tensor, "B K S D"],
        value: Float[Tensor, "B K S D"],
        *,
        mask: Mask = None,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H T D"]:
        """Return attention; the arguments are those of `naive_attention`."""

    @abstractmethod
    def require(self, *, width: int, dropout: float, has_sinks: bool) -> None:
        """Raise a ValueError if the kernel cannot compute a layer.

        Args:
            width: columns of a query.
            dropout: probability of setting an attention weight to zero.
            has_sinks: whether the softmax has a further score.
        """

    @abstractmethod
    def wants_mask(self, x: Float[Tensor, "B T C"], known: Mapping[str, Any] | None) -> bool:
        """Return whether `make_mask` makes the mask for T tokens without earlier ones.

        Args:
            x: states of the tokens; only their device and length matter.
            known: the arguments `causal` and `window` that replace the mask; None if it takes a tensor.
        """

    @abstractmethod
    def make_mask(
        self,
        allowed: Bool[Tensor, "*rows 1 T T"],
        *,
        bias: Float[Tensor, "*other H T T"] | None,
    ) -> KernelMask:
        """Return the mask of the kernel.

        Args:
            allowed: which keys each query may attend to.
            bias: what is added to the scores.
        """


def fitting(
    kernel: Callable[..., Tensor], *, width: int, dropout: float, has_sinks: bool = False
) -> Callable[..., Tensor]:
    """Return the kernel of a layer; the arguments are those of `MaskingKernel.require`.

    Raises:
        ValueError: the kernel cannot compute the layer.
    """
    if isinstance(kernel, MaskingKernel):
        kernel.require(width=width, dropout=dropout, has_sinks=has_sinks)
    return kernel
