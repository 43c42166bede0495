import math

import pytest
import torch

from llm.nn.positions import ALiBi, Learned, NoPosition, Rotary, Sinusoidal, rotate

X = torch.zeros(1, 3, 8, dtype=torch.float64)


@pytest.mark.parametrize("position", [NoPosition(), Learned(50, 8), Sinusoidal(8), Rotary(8, 2)])
def test_slice_and_equal_indices_give_equal_positions(position):
    numbers = torch.tensor([4, 5, 6])
    for given in (numbers, numbers.repeat(1, 1)):
        torch.testing.assert_close(
            position.embed(X, given), position.embed(X, slice(4, 7)), rtol=0, atol=0
        )
        one, other = position.rotation(X, given), position.rotation(X, slice(4, 7))
        assert (one is None) == (other is None)
        if one is not None:
            assert all(torch.equal(a.reshape(b.shape), b) for a, b in zip(one, other, strict=True))


def test_rows_may_have_different_positions():
    positions = torch.tensor([[0, 1, 2], [5, 6, 7]])
    x = X.repeat(2, 1, 1)
    for position in (Learned(50, 8), Sinusoidal(8)):
        both = position.embed(x, positions)
        torch.testing.assert_close(both[1:], position.embed(X, slice(5, 8)))
    cos, sin = Rotary(8, 2).rotation(x, positions)
    assert cos.shape == sin.shape == (2, 1, 3, 2)
    torch.testing.assert_close(cos[1], Rotary(8, 2).rotation(X, slice(5, 8))[0])


def test_too_many_learned_positions_raise_an_error():
    with pytest.raises(ValueError, match=r"51 positions.*context_length=50.*rotary"):
        Learned(50, 8).embed(X, slice(48, 51))
    with pytest.raises(ValueError, match="context_length=2"):
        Learned(2, 8).embed(X, torch.tensor([0, 1, 1]))


def test_sinusoids_equal_those_of_the_paper():
    at_three = Sinusoidal(8).embed(X, slice(3, 6))[0, 0]
    for pair in range(4):
        angle = 3 / 10000 ** (2 * pair / 8)
        assert math.isclose(at_three[2 * pair], math.sin(angle), abs_tol=1e-15)
        assert math.isclose(at_three[2 * pair + 1], math.cos(angle), abs_tol=1e-15)


def test_rotation_is_complex_multiplication():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    rotated = rotate(x, Rotary(8, 1).rotation(x[:, 0], slice(7, 12)))
    frequency = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.exp(1j * torch.arange(7, 12, dtype=torch.float64)[:, None] * frequency)
    expected = torch.complex(x[..., :4], x[..., 4:]) * turn
    torch.testing.assert_close(rotated, torch.cat((expected.real, expected.imag), -1))


def test_rotary_positions_extend_past_the_context():
    x = torch.zeros(1, 1, 8)
    cos, _ = Rotary(8, 2).rotation(x, slice(100_000, 100_001))
    expected = math.cos(100_000 / 10000 ** (2 / 4))
    assert math.isclose(cos[0, 0, 1].item(), expected, abs_tol=1e-3)


def test_rotation_of_a_half_precision_model_is_not_computed_in_half_precision():
    x = torch.zeros(1, 1, 64, dtype=torch.bfloat16)
    cos, _ = Rotary(64, 1).rotation(x, slice(1001, 1002))
    assert math.isclose(cos[0, 0, 0].item(), math.cos(1001), abs_tol=1e-4)


@pytest.mark.parametrize("kind", [lambda: Sinusoidal(7), lambda: Rotary(9, 3)])
def test_odd_width_is_refused(kind):
    with pytest.raises(ValueError, match="is odd"):
        kind()


def test_alibi_slopes_of_a_power_of_two_are_geometric():
    expected = torch.tensor([2.0**-h for h in range(1, 9)])
    torch.testing.assert_close(ALiBi(8).slopes(), expected)
    torch.testing.assert_close(ALiBi(1).slopes(), torch.tensor([2.0**-8]))


@pytest.mark.parametrize("num_heads", [3, 6, 12, 25])
def test_alibi_slopes_of_other_counts_add_those_of_the_next_power(num_heads):
    below = 2 ** int(math.log2(num_heads))
    between = [2 ** (-8 * h / (2 * below)) for h in range(1, 2 * below, 2)]
    expected = [2 ** (-8 * h / below) for h in range(1, below + 1)] + between
    torch.testing.assert_close(ALiBi(num_heads).slopes(), torch.tensor(expected[:num_heads]))


def test_bias_falls_with_distance():
    bias = ALiBi(8).bias(X[:, :2], query_positions=slice(2, 4), key_positions=slice(0, 4))
    assert bias.shape == (8, 2, 4)
    assert bias[0].tolist() == [[-1.0, -0.5, 0.0, 0.5], [-1.5, -1.0, -0.5, 0.0]]


@pytest.mark.parametrize(("fraction", "rotated"), [(0.25, 2), (0.5, 4), (1.0, 8)])
def test_fraction_of_a_head_rotates_and_the_rest_stays(fraction, rotated):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    rotary = Rotary(24, 3, fraction=fraction)
    actual = rotate(x, rotary.rotation(x[:, 0], slice(7, 12)))
    # A head of only the rotated columns.
    narrow = Rotary(3 * rotated, 3).rotation(x[:, 0], slice(7, 12))
    expected = torch.cat((rotate(x[..., :rotated], narrow), x[..., rotated:]), dim=-1)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("fraction", [0.0, 1.5, 0.125, 0.1])
def test_fraction_without_a_pair_is_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction.*{fraction}"):
        Rotary(24, 3, fraction=fraction)
