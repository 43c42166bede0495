import torch

from llm.nn.residual import no_residual, post_norm, pre_norm, reordered_norm


def test_norms_around_a_sublayer_follow_their_equations():
    x = torch.full((1, 1, 2), 3.0)

    def double(x):
        return 2 * x

    def increment(x):
        return x + 1

    assert pre_norm(x, double, increment)[0, 0, 0] == 3 + 2 * (3 + 1)
    assert post_norm(x, double, increment)[0, 0, 0] == (3 + 2 * 3) + 1
    assert reordered_norm(x, double, increment)[0, 0, 0] == 3 + (2 * 3 + 1)
    assert no_residual(x, double, increment)[0, 0, 0] == 2 * (3 + 1)
