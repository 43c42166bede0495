"""A short causal convolution over time, one filter per channel, in front of a recurrence.

The keys, values and queries of a recurrence then depend on the last few tokens and not on one alone, as in H3 (Fu et
al. 2023) and Mamba (Gu and Dao 2023).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def short_convolution(
    inputs: Float[Tensor, "B S C"],
    weight: Float[Tensor, "C K"],
    *,
    bias: Float[Tensor, "C"] | None = None,
    document_ids: Int[Tensor, "B S"] | None = None,
) -> Float[Tensor, "B T C"]:
    """Return y_t = Σ_k weight_k · x_(t - K + 1 + k) of each channel, for the last T = S - K + 1 of S positions.

    Args:
        inputs: the K - 1 inputs before the first output, and the T inputs after them.
        weight: one filter per channel; its last column meets the newest input.
        bias: added to each channel.
        document_ids: document of each position; inputs of another document count as 0.
    """
    width = weight.shape[1]
    length = inputs.shape[1] - width + 1
    output = torch.zeros_like(inputs[:, :length]) if bias is None else bias.to(inputs.dtype)
    # A sum of K shifted products: K is 4 or so, and a sum can leave out a product at the border of a document.
    for shift in range(width):
        shifted = inputs[:, shift : shift + length]
        if document_ids is not None:
            same = document_ids[:, shift : shift + length] == document_ids[:, width - 1 :]
            shifted = shifted * same[..., None]
        # (B, T, C) * (C) -> (B, T, C)
        output = output + shifted * weight[:, shift].to(inputs.dtype)
    return output


class ShortConvolution(nn.Module):
    """A causal depthwise convolution whose state is the last K - 1 inputs.

    Args:
        dim: number of channels C.
        kernel_size: number K of inputs that an output depends on.
        bias: whether each channel has a bias.
    """

    def __init__(self, dim: int, kernel_size: int = 4, *, bias: bool = False) -> None:
        super().__init__()
        if kernel_size < 1:
            raise ValueError(f"kernel_size={kernel_size}: must be at least 1")
        self.dim, self.kernel_size = dim, kernel_size
        self.weight = nn.Parameter(torch.empty(dim, kernel_size))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw as `nn.Conv1d` does: from U(±1/√K)."""
        bound = self.weight.shape[1] ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def new_history(self, batch_size: int, *, dtype: torch.dtype) -> Float[Tensor, "B history C"]:
        """Return the inputs before a text: zeros."""
        # Not from the weight, of which a device may hold a part.
        shape = (batch_size, self.kernel_size - 1, self.dim)
        return torch.zeros(shape, dtype=dtype, device=self.weight.device)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        history: Float[Tensor, "B history C"] | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B history C"]]:
        """Return the outputs and the last K - 1 real inputs.

        Args:
            x: the new inputs.
            history: the K - 1 real inputs before them; None means zeros.
            attention_mask: True for real tokens. The filter skips padding, wherever it is.
            document_ids: document of each token; the filter does not look into another one.
        """
        if history is None:
            history = self.new_history(x.shape[0], dtype=x.dtype)
        before, length = history.shape[1], x.shape[1]
        # (B, K - 1, C) and (B, T, C) -> (B, S, C)
        inputs = torch.cat((history.to(x.dtype), x), dim=1)
        documents = None if document_ids is None else F.pad(document_ids, (before, 0))
        if attention_mask is None:
            output = self._convolve(inputs, documents)
            return output, inputs[:, length:].to(history.dtype)

        # Move padding before the history, so that the real inputs of a row follow one another.
        order = F.pad(attention_mask, (before, 0), value=True).byte().argsort(dim=1, stable=True)
        inputs = _columns(inputs, order)
        documents = None if documents is None else documents.gather(1, order)
        output = self._convolve(inputs, documents)
        # Where each new input went. The outputs begin at column K - 1, and padding before it has none of its own.
        column = (order.argsort(dim=1)[:, before:] - before).clamp(min=0)
        return _columns(output, column), inputs[:, length:].to(history.dtype)

    def _convolve(
        self, inputs: Float[Tensor, "B S C"], document_ids: Int[Tensor, "B S"] | None
    ) -> Float[Tensor, "B T C"]:
        return short_convolution(inputs, self.weight, bias=self.bias, document_ids=document_ids)


def _columns(x: Float[Tensor, "B S C"], index: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
    """Return the columns of each row that `index` names."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
