"""What Gated DeltaNet and Mamba-2 share: a short convolution before a memory of one matrix per head."""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.nn.chunked_decay import document_starts
from llm.nn.recurrent_mixer import RecurrentMixer, RecurrentState
from llm.nn.short_convolution import ShortConvolution


class MemoryMixer(RecurrentMixer):
    """A recurrent layer whose state is the convolution's last inputs and a memory (B, H, rows, columns).

    Attributes:
        convolution: the convolution before the recurrence.
        recurrence: the function that reads and writes the memory, token by token or in an equivalent form.
        A_log: logarithm of A, from which the decay of each head is computed, (H).
    """

    convolution: ShortConvolution
    recurrence: Callable[..., tuple[Tensor, Tensor]]
    A_log: nn.Parameter

    @property
    @abstractmethod
    def memory_shape(self) -> tuple[int, int, int]:
        """Heads, rows and columns of the memory."""

    def new_state(self, batch_size: int, *, dtype: torch.dtype | None = None) -> RecurrentState:
        """Return the inputs before the convolution's first, and the empty memory."""
        dtype = dtype or self.A_log.dtype
        # At least float32: the memory is a sum over all tokens, and its rounding errors add up.
        precise = torch.promote_types(dtype, torch.float32)
        shape = (batch_size, *self.memory_shape)
        return RecurrentState(
            history=self.convolution.new_history(batch_size, dtype=dtype),
            memory=torch.zeros(shape, dtype=precise, device=self.A_log.device),
        )

    def _convolved(
        self,
        inputs: Float[Tensor, "B T channels"],
        *,
        state: RecurrentState,
        attention_mask: Bool[Tensor, "B T"] | None,
        document_ids: Int[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B T channels"], Tensor]:
        """Return SiLU of the convolution in the precision of the memory, and the last inputs for the next call."""
        mixed, history = self.convolution(
            inputs,
            history=state.parts["history"],
            attention_mask=attention_mask,
            document_ids=document_ids,
        )
        return F.silu(mixed).to(state.parts["memory"].dtype), history

    def _recur(
        self,
        *inputs: Tensor,
        memory: Tensor,
        document_ids: Int[Tensor, "B T"] | None,
        **others: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return what the heads read, and the memory after the last token, in the precision of the memory."""
        # Autocast would round the products of the recurrence, and the memory is a sum of all of them.
        with torch.autocast(memory.device.type, enabled=False):
            return self.recurrence(
                *(each.to(memory.dtype) for each in inputs),
                **{name: each.to(memory.dtype) for name, each in others.items()},
                state=memory,
                starts=None if document_ids is None else document_starts(document_ids),
            )
