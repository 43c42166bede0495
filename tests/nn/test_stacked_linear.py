import pytest
import torch
from torch import nn

from llm.nn import init
from llm.nn.stacked_linear import StackedLinear


def linear_layers(stack):
    """Return the layers of a stack as `nn.Linear`."""
    layers = []
    for index, matrix in enumerate(stack.weight):
        layer = nn.Linear(*matrix.T.shape, bias=stack.bias is not None, dtype=matrix.dtype)
        layer.weight.data = matrix.detach()
        if stack.bias is not None:
            layer.bias.data = stack.bias[index].detach()
        layers.append(layer)
    return layers


@pytest.mark.parametrize("bias", [True, False])
def test_layers_equal_linear_layers(bias):
    torch.manual_seed(0)
    stack = StackedLinear(4, 6, 5, bias=bias).double()
    sizes = [2, 0, 3, 1]
    x = torch.randn(6, 6, dtype=torch.float64)
    layers = linear_layers(stack)
    parts = [layer(own) for layer, own in zip(layers, x.split(sizes), strict=True)]
    torch.testing.assert_close(stack(x, torch.tensor(sizes).cumsum(0)), torch.cat(parts))
    for index, layer in enumerate(layers):
        torch.testing.assert_close(stack.one(index, x), layer(x))


class Model(nn.Module):
    """A stack, or the same layers one by one."""

    def __init__(self, *, is_stacked):
        super().__init__()
        self.output = (
            StackedLinear(3, 8, 16, bias=True)
            if is_stacked
            else nn.ModuleList(nn.Linear(8, 16) for _ in range(3))
        )


@pytest.mark.parametrize(
    "initialize",
    [
        *(init.xavier_uniform, init.xavier_normal, init.kaiming_uniform, init.kaiming_normal),
        init.orthogonal,
    ],
)
def test_initial_values_equal_those_of_linear_layers(initialize):
    stacked, separate = Model(is_stacked=True), Model(is_stacked=False)
    for model in (stacked, separate):
        torch.manual_seed(0)
        initialize(model)
    expected = torch.stack([layer.weight for layer in separate.output])
    assert torch.equal(stacked.output.weight, expected)
    assert not stacked.output.bias.any()


def test_torch_default_draws_matrices_as_linear_layers_do():
    torch.manual_seed(0)
    stack = StackedLinear(1, 8, 16, bias=True)
    torch.manual_seed(0)
    layer = nn.Linear(8, 16)
    assert torch.equal(stack.weight[0], layer.weight)
    assert torch.equal(stack.bias[0], layer.bias)


@pytest.mark.parametrize("initialize", [init.gpt2, init.zero_writes, init.truncated_normal])
def test_stacks_that_write_to_the_residual_stream_start_smaller(initialize):
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.input = StackedLinear(4, 64, 128, bias=False)
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"output": StackedLinear(4, 128, 64, bias=False)}) for _ in range(4)
            )

    torch.manual_seed(0)
    initialize(model := Layers())
    std = 0.0 if initialize is init.zero_writes else 0.02 / 4**0.5
    assert model.input.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.blocks[0]["output"].weight.std().item() == pytest.approx(std, rel=0.03)
