import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm.optim.groups import decay_matrices
from llm.optim.muon import COEFFICIENTS, Muon, newton_schulz


class Tiny(nn.Module):
    """Wide, tall, square and equal matrices in blocks, with an embedding and a head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(13, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"input": nn.Linear(8, 24), "output": nn.Linear(24, 8)}) for _ in range(3)
        )
        self.head = nn.Linear(8, 13, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block["output"](torch.tanh(block["input"](x)))
        return self.head(x)


def loss_of(model, step=0):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(13, (4, 9), generator=generator)
    return F.cross_entropy(model(tokens).flatten(0, 1), (tokens.flatten() * 5 + 1) % 13)


def train(model, optimizers, steps, start=0):
    for step in range(start, start + steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 5)])
def test_newton_schulz_maps_the_singular_values_and_keeps_the_vectors(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).double()
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = left @ torch.diag_embed(values) @ right
    torch.testing.assert_close(newton_schulz(matrices, dtype=torch.float64), expected)


def test_newton_schulz_brings_the_singular_values_near_one():
    matrices = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(newton_schulz(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_newton_schulz_keeps_zeros_and_treats_each_matrix_alone():
    matrices = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    matrices[1] = 0
    turned = newton_schulz(matrices, dtype=torch.float32)
    assert torch.equal(turned[1], torch.zeros(6, 9))
    alone = newton_schulz(matrices[2:], dtype=torch.float32)
    torch.testing.assert_close(turned[2:], alone)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_cpu_that_emulates_bfloat16_computes_the_products_in_float32(monkeypatch, is_native):
    monkeypatch.setattr("llm.optim.muon.cpu_computes_bfloat16", lambda: is_native)
    matrices = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(0))
    turned = newton_schulz(matrices)
    assert turned.dtype == torch.bfloat16
    precise = newton_schulz(matrices, dtype=torch.float32).bfloat16()
    assert torch.equal(turned, precise) == (not is_native)


def test_equals_torchs_muon_on_matrices_and_torchs_adamw_on_the_rest():
    ours, theirs = Tiny(), Tiny()
    start = copy.deepcopy(ours)
    muon = Muon(decay_matrices(ours), lr=0.02, adamw_lr=3e-3, weight_decay=0.1, momentum=0.9)
    hidden, *rest = decay_matrices(theirs)
    references = [
        torch.optim.Muon(hidden["params"], lr=0.02, weight_decay=0.1, momentum=0.9),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    train(ours, [muon], 6)
    train(theirs, references, 6)
    for (name, ours_), theirs_, start_ in zip(
        ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True
    ):
        moved = (theirs_ - start_).norm()
        # Both round their products to bfloat16, but in different orders.
        assert (ours_ - theirs_).norm() < 0.02 * moved, name
        assert moved > 0, name


def test_adamw_equals_torchs_exactly_at_a_muon_rate_of_0():
    ours, theirs = Tiny(), Tiny()
    for model in (ours, theirs):
        model.blocks.requires_grad_(False)
        model.blocks[0]["input"].weight.requires_grad_(True)
    muon = Muon(decay_matrices(ours), lr=0.0, adamw_lr=1e-2, weight_decay=0.1)
    _, *rest = decay_matrices(theirs)
    adamw = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    train(ours, [muon], 5)
    train(theirs, [adamw], 5)
    for ours_, theirs_ in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours_, theirs_)


def test_step_follows_the_stated_scale():
    """The step of a tall matrix is larger by the root of rows / columns; that of a wide one is not."""
    for rows, columns in [(32, 8), (8, 32), (8, 8)]:
        model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(columns, rows, bias=False)])})
        weight = model["blocks"][0].weight
        weight.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        before = weight.detach().clone()
        Muon(decay_matrices(model), lr=0.1).step()
        values = torch.linalg.svdvals(before - weight.detach())
        scale = 0.1 * math.sqrt(max(1, rows / columns))
        assert values.max() < 1.3 * scale
        assert values.mean() > 0.7 * scale


def test_stack_of_matrices_is_updated_like_single_matrices():
    gradient = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0))
    stack = nn.Parameter(torch.zeros(2, 12, 6))
    single = [nn.Parameter(torch.zeros(12, 6)) for _ in range(2)]
    stack.grad = gradient.clone()
    for parameter, part in zip(single, gradient, strict=True):
        parameter.grad = part.clone()
    Muon([{"params": [stack], "hidden": True}]).step()
    Muon([{"params": single, "hidden": True}]).step()
    torch.testing.assert_close(stack.detach(), torch.stack(list(single)).detach())


def test_resumes_exactly_from_a_checkpoint_of_plain_data(tmp_path):
    whole, first = Tiny(), Tiny()
    train(whole, [Muon(decay_matrices(whole))], 6)
    optimizer = Muon(decay_matrices(first))
    train(first, [optimizer], 3)
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c")

    checkpoint = torch.load(tmp_path / "c", weights_only=True)
    second = Tiny(seed=1)
    second.load_state_dict(checkpoint["model"])
    optimizer = Muon(decay_matrices(second), lr=0.9)
    optimizer.load_state_dict(checkpoint["optimizer"])
    train(second, [optimizer], 3, start=3)
    for resumed, uninterrupted in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(resumed, uninterrupted)


def test_schedule_scales_both_learning_rates():
    optimizer = Muon(decay_matrices(Tiny()), lr=0.02, adamw_lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    optimizer.step()
    scheduler.step()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"hidden": 0.01, "embedding": 1e-3, "vector": 1e-3})


def test_parameter_without_a_gradient_is_unchanged():
    model = Tiny()
    model.embedding.weight.grad = torch.ones_like(model.embedding.weight)
    before = copy.deepcopy(model)
    Muon(decay_matrices(model)).step()
    for (name, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, old) == (name != "embedding.weight"), name


def test_step_returns_the_loss_of_its_closure():
    model = Tiny()
    optimizer = Muon(decay_matrices(model))

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_learns_under_autocast_with_a_gradient_scaler(dtype):
    model = Tiny()
    optimizer = Muon(decay_matrices(model))
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    start = loss_of(model).item()
    for step in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model, step)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert loss_of(model).item() < start / 2


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float64])
def test_takes_weights_of_any_precision(weights):
    model = Tiny().to(weights)
    start = loss_of(model).item()
    train(model, [Muon(decay_matrices(model))], 20)
    assert loss_of(model).item() < start
    assert {parameter.dtype for parameter in model.parameters()} == {weights}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"adamw_lr": -1.0}, "adamw_lr=-1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"momentum": 1.0}, "momentum: 1.0"),
        ({"betas": (0.9, 1.5)}, "betas: 1.5"),
        ({"betas": [0.9]}, "betas=.* two numbers"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Muon(decay_matrices(Tiny()), **settings)


def test_model_without_blocks_and_hidden_vectors_are_refused():
    with pytest.raises(ValueError, match="none of them is trainable here; set optimizer=adamw"):
        Muon(decay_matrices(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="vector"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "hidden": True}])
