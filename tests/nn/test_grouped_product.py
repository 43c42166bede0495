import pytest
import torch

from llm.nn import grouped_product as module
from llm.nn.grouped_product import grouped_outer_product, grouped_product

ENDS = torch.tensor([3, 3, 8, 9])


def draw(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def test_gradients_equal_finite_differences():
    rows, matrices = draw(9, 4), draw(4, 4, 6)
    assert torch.autograd.gradcheck(lambda a, b: grouped_product(a, b, ENDS), (rows, matrices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_of_torch_equals_the_loop(dtype, monkeypatch):
    rows, matrices = draw(9, 16, dtype=dtype), draw(4, 16, 8, dtype=dtype)
    results = []
    for takes in (True, False):
        monkeypatch.setattr(module, "_is_supported", lambda *_, takes=takes: takes)
        y = grouped_product(rows, matrices, ENDS)
        results.append([y, *torch.autograd.grad(y.sum(), (rows, matrices))])
    torch.testing.assert_close(results[0], results[1])


def test_torch_takes_rows_of_a_multiple_of_16_bytes():
    cases = [
        (torch.float32, 4, 8),
        (torch.bfloat16, 8, 8),
        (torch.bfloat16, 4, 8),
        (torch.float32, 4, 6),
    ]
    cases += [(torch.float64, 4, 4)]
    found = [module._is_supported(draw(2, a, dtype=dtype), b) for dtype, a, b in cases]
    assert found == [True, True, False, False, False]


def test_fake_tensors_have_the_shapes_of_real_ones():
    for operator, shapes in (
        (grouped_product, ((9, 4), (4, 4, 6))),
        (grouped_outer_product, ((9, 4), (9, 6))),
    ):
        tensors = [draw(*shape).detach() for shape in shapes]
        torch.library.opcheck(
            operator, (*tensors, ENDS), test_utils=("test_schema", "test_faketensor")
        )
