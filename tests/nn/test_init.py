import inspect
from functools import partial

import pytest
import torch
from torch import nn

from llm.nn import init
from llm.nn.gated_deltanet import GatedDeltaNet
from llm.nn.lstm import LSTM
from llm.nn.mamba2 import Mamba2

TABLE = [f for n, f in inspect.getmembers(init, inspect.isfunction) if not n.startswith("_")]
LAYERS = 8


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(300, 256)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"input": nn.Linear(256, 512), "output": nn.Linear(512, 256)})
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(256)


@pytest.mark.parametrize("initialize", [init.gpt2, init.truncated_normal])
def test_residual_output_weights_start_smaller(initialize):
    torch.manual_seed(0)
    initialize(model := Tiny())
    for block in model.blocks:
        torch.testing.assert_close(block["input"].weight.std().item(), 0.02, rtol=0.03, atol=0)
        expected = 0.02 / LAYERS**0.5
        torch.testing.assert_close(block["output"].weight.std().item(), expected, rtol=0.03, atol=0)
        assert not block["output"].bias.any()
    torch.testing.assert_close(model.embedding.weight.std().item(), 0.02, rtol=0.03, atol=0)


def test_zero_writes_gives_identity_blocks_with_gradients():
    torch.manual_seed(0)
    init.zero_writes(model := Tiny())
    for block in model.blocks:
        assert not block["output"].weight.any()
        torch.testing.assert_close(block["input"].weight.std().item(), 0.02, rtol=0.03, atol=0)
    x = torch.randn(3, 256)
    block = model.blocks[0]
    (x + block["output"](block["input"](x).relu())).square().sum().backward()
    assert block["output"].weight.grad.any()


def test_truncated_normal_stays_within_three_deviations():
    init.truncated_normal(model := Tiny(), std=0.1)
    assert model.embedding.weight.abs().max() <= 0.3


@pytest.mark.parametrize(
    ("initialize", "std"),
    [
        (init.xavier_uniform, (2 / (256 + 512)) ** 0.5),
        (init.xavier_normal, (2 / (256 + 512)) ** 0.5),
        (init.kaiming_uniform, (2 / 256) ** 0.5),
        (init.kaiming_normal, (2 / 256) ** 0.5),
        (init.torch_default, (1 / 3 / 256) ** 0.5),
    ],
)
def test_standard_deviation_follows_the_formula(initialize, std):
    torch.manual_seed(0)
    initialize(model := Tiny())
    weight = model.blocks[0]["input"].weight
    torch.testing.assert_close(weight.std().item(), std, rtol=0.02, atol=0)


def test_orthogonal_rows_are_orthonormal():
    init.orthogonal(model := Tiny())
    weight = model.blocks[0]["output"].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(256), rtol=0, atol=1e-5)


@pytest.mark.parametrize("initialize", TABLE)
def test_every_entry_fills_a_model_created_on_meta(initialize):
    with torch.device("meta"):
        model = Tiny()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter.data, torch.nan)
    torch.manual_seed(0)
    initialize(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert torch.equal(model.norm.weight, torch.ones(256))


@pytest.mark.parametrize("initialize", TABLE)
@pytest.mark.parametrize(
    "make", [partial(GatedDeltaNet, num_heads=4), partial(Mamba2, num_heads=4), LSTM]
)
def test_every_entry_leaves_the_vectors_of_a_recurrence_as_it_draws_them(initialize, make):
    layer = make(32)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(0)
    initialize(model := nn.ModuleDict({"blocks": layer}))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    torch.manual_seed(0)
    layer.reset_parameters()
    expected = {
        name: parameter.clone() for name, parameter in layer.named_parameters(recurse=False)
    }
    torch.manual_seed(0)
    initialize(model)
    for name, parameter in layer.named_parameters(recurse=False):
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("initialize", TABLE)
def test_the_table_in_the_docstring_is_complete(initialize):
    assert f"| {initialize.__name__} " in init.__doc__
