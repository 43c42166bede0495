"""The short convolution, its state, padding and documents."""

import pytest
import torch
import torch.nn.functional as F

from llm.nn.short_convolution import ShortConvolution


@pytest.fixture
def convolution():
    torch.manual_seed(0)
    return ShortConvolution(5, 4, bias=True).double()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_convolution_equals_that_of_torch(convolution, x):
    weight = convolution.weight[:, None]  # (C, K) -> (C, 1, K)
    padded = F.pad(x.mT, (3, 0))
    expected = F.conv1d(padded, weight, convolution.bias, groups=5).mT
    assert_same(convolution(x)[0], expected)


@pytest.mark.parametrize("sizes", [[1] * 9, [2, 5, 1, 1], [9]])
def test_history_continues_a_text(convolution, x, sizes):
    history, parts = None, []
    for part in x.split(sizes, dim=1):
        output, history = convolution(part, history=history)
        assert history.shape == (2, 3, 5)
        parts.append(output)
    assert_same(torch.cat(parts, dim=1), convolution(x)[0])
    assert_same(history, x[:, -3:])


@pytest.mark.parametrize("places", [[0, 1, 2], [7, 8], [0, 3, 4, 8], [*range(9)]])
@pytest.mark.parametrize("sizes", [[9], [3, 1, 5]])
def test_padding_is_skipped_wherever_it_is(convolution, x, places, sizes):
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, places] = False
    history, parts = None, []
    for part, mask in zip(x.split(sizes, dim=1), real.split(sizes, dim=1), strict=True):
        output, history = convolution(part, history=history, attention_mask=mask)
        parts.append(output)
    output = torch.cat(parts, dim=1)
    for row in range(2):
        expected, last = convolution(x[row : row + 1, real[row]])
        assert_same(output[row, real[row]], expected[0])
        assert_same(history[row], last[0])


def test_documents_do_not_see_each_other(convolution, x):
    ids = torch.tensor([[3] * 4 + [1] * 5, [0] * 9])
    output, _ = convolution(x, document_ids=ids)
    apart = torch.cat((convolution(x[:1, :4])[0], convolution(x[:1, 4:])[0]), dim=1)
    assert_same(output[:1], apart)
    assert_same(output[1:], convolution(x[1:])[0])
    padded = torch.cat((x[:, :2], x), dim=1)
    real = torch.arange(11).expand(2, 11) >= 2
    ids = torch.cat((ids[:, :2], ids), dim=1)
    assert_same(convolution(padded, attention_mask=real, document_ids=ids)[0][:, 2:], output)


def test_kernel_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="kernel_size=0: must be at least 1"):
        ShortConvolution(5, 0)
