from functools import partial

import torch

from llm.nn.attention import Attention
from llm.nn.norms import RMSNorm
from llm.nn.qk_norm import all_heads, each_head


def test_each_head_and_all_heads_follow_their_equations():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    make = partial(RMSNorm, eps=0.0)
    each, every = (over(make, num_heads=3, head_dim=4).double() for over in (each_head, all_heads))
    with torch.no_grad():
        every.norm.weight.copy_(torch.arange(12.0) + 1)
    torch.testing.assert_close(each(x), x / x.square().mean(dim=-1, keepdim=True).sqrt())
    mean_square = x.square().mean(dim=(1, 3), keepdim=True)
    scale = (torch.arange(12.0, dtype=torch.float64) + 1).view(3, 1, 4)
    torch.testing.assert_close(every(x), x / mean_square.sqrt() * scale)


def test_all_heads_of_grouped_attention_have_a_scale_for_each_column():
    attention = Attention(16, 4, num_kv_heads=2, qk_norm=RMSNorm, qk_norm_over=all_heads)
    assert attention.query_norm.norm.weight.shape == (16,)
    assert attention.key_norm.norm.weight.shape == (8,)
