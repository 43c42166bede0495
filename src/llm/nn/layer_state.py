"""What a layer keeps of earlier tokens, so that generation computes each token once.

Attention keeps keys and values: of all tokens (`kv_cache.LayerCache`) or of a window (`kv_cache.WindowCache`). A
recurrent layer keeps a state of fixed size.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from jaxtyping import Int
from torch import Tensor


class LayerState(ABC):
    """The state of one layer for the rows of a batch.

    Attributes:
        length: number of tokens that the state has seen, padding included.
        is_bounded: whether its size does not grow with the number of tokens.
    """

    length: int = 0
    is_bounded: bool

    @abstractmethod
    def tensors(self) -> Iterable[Tensor]:
        """Return the tensors of the state; the first axis of each is the batch."""

    @abstractmethod
    def select(self, rows: Int[Tensor, "rows"]) -> None:
        """Keep some rows of the batch, in the given order; a row may occur more than once, as in beam search."""

    def can_rewind(self, count: int) -> bool:
        """Return whether the last `count` tokens can be forgotten. A state that mixes its tokens cannot."""
        return count == 0

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens.

        Raises:
            ValueError: the state no longer has what was before them.
        """
        if not self.can_rewind(count):
            raise ValueError(
                f"count={count}: {type(self).__name__} cannot forget tokens; compute the text from its start"
            )
        self.length -= count

    def enlarge(self, capacity: int) -> None:  # noqa: B027 - a bounded state does nothing
        """Make room for `capacity` tokens in all; a bounded state has room for any number."""

    @property
    def nbytes(self) -> int:
        """Size of the tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors())
