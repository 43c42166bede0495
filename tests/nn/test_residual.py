import torch

from llm.nn.residual import post_norm, pre_norm


def test_each_residual_applies_the_norm_in_its_place():
    x = torch.full((1, 1, 2), 3.0)

    def double(x):
        return 2 * x

    def increment(x):
        return x + 1

    assert pre_norm(x, double, increment)[0, 0, 0] == 3 + 2 * (3 + 1)
    assert post_norm(x, double, increment)[0, 0, 0] == (3 + 2 * 3) + 1
