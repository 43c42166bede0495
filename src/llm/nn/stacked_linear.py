"""Linear layers of one shape as a stack, one for each expert."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm.nn.grouped_product import grouped_product


class StackedLinear(nn.Module):
    """E linear layers, each with a matrix (R, C) as in `nn.Linear`.

    Args:
        num_layers: number E of layers.
        in_features: width C of the inputs.
        out_features: width R of the outputs.
        bias: whether the layers have biases.
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_layers, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_layers, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each layer as `nn.Linear` does: from U(±1/√C)."""
        for matrix in self.weight:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[-1])
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Float[Tensor, "M C"], ends: Int[Tensor, "E"]) -> Float[Tensor, "M R"]:
        """Return the outputs of all layers in one product.

        Args:
            x: the inputs of the first layer, then those of the second, and so on.
            ends: index after the last input of each layer.
        """
        y = stacked_product(x, self.weight, ends)
        if self.bias is None:
            return y
        # The layer of row m is the number of layers that end at m or before.
        rows = torch.arange(x.shape[0], device=x.device)
        return y + self.bias[torch.bucketize(rows, ends, right=True)].to(y.dtype)

    def one(self, index: int, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B R"]:
        """Return the outputs of layer `index`."""
        matrix, bias = self.weight[index], None if self.bias is None else self.bias[index]
        if torch.is_autocast_enabled(x.device.type):
            return F.linear(x, matrix, bias)
        return F.linear(x.to(matrix.dtype), matrix, bias).to(x.dtype)


def stacked_product(
    x: Float[Tensor, "M C"], weight: Float[Tensor, "E R C"], ends: Int[Tensor, "E"]
) -> Float[Tensor, "M R"]:
    """Return x Wᵀ for the matrix of each row's layer.

    The product is in the dtype of autocast or of `weight`, and so is the result under autocast, as in torch's own
    operators. Without autocast it has the dtype of `x`.
    """
    is_autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if is_autocast else weight.dtype
    y = grouped_product(x.to(dtype), weight.to(dtype).mT, ends)  # (M, C) @ (E, C, R) -> (M, R)
    return y if is_autocast else y.to(x.dtype)
