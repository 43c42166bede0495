"""Time attention with a sliding window: in blocks of the window, and with a dense mask, alternately."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from llm.nn.attention import fused_attention
from llm.nn.masks import sliding_window

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
HEADS, HEAD_DIM = 6, 64


def milliseconds(attention: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Return the time of a forward and a backward pass."""
    start = time.perf_counter()
    attention(*inputs).sum().backward()
    return 1000 * (time.perf_counter() - start)


def measure(length: int, *, window: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return the times of `rounds` passes with a dense mask and of as many in blocks, after one that is not counted."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, HEADS, length, HEAD_DIM, requires_grad=True) for _ in range(3)]
    columns = torch.arange(length)
    dense = partial(fused_attention, mask=sliding_window(window)(columns, columns))
    blocks = partial(fused_attention, causal=True, window=window)
    with torch.no_grad():
        torch.testing.assert_close(blocks(*inputs), dense(*inputs), rtol=1e-4, atol=1e-5)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for found, attention in zip(times, (dense, blocks), strict=True):
            found.append(milliseconds(attention, inputs))
    return times[0][1:], times[1][1:]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    given = parser.parse_args()
    print(
        "| tokens | dense mask, ms | blocks, ms | ratio (lowest to highest) |\n|---:|---:|---:|---|"
    )
    for length in given.lengths:
        dense, blocks = measure(length, window=given.window, rounds=given.rounds)
        ratios = sorted(a / b for a, b in zip(dense, blocks, strict=True))
        print(
            f"| {length:,} | {median(dense):.1f} | {median(blocks):.1f} "
            f"| {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
