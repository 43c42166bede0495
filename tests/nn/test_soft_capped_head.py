import torch
from torch import nn

from llm.nn.soft_capped_head import SoftCappedHead


def test_logits_are_bounded_and_small_ones_hardly_change():
    torch.manual_seed(0)
    head, linear = SoftCappedHead(8, 5, softcap=2.0).double(), nn.Linear(8, 5, bias=False).double()
    linear.load_state_dict(head.state_dict())
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(head(x), 2 * torch.tanh(linear(x) / 2))
    assert head(1000 * x).abs().max() <= 2
    torch.testing.assert_close(head(x / 1000), linear(x / 1000), rtol=1e-6, atol=0)
