"""The time of a product of a matrix with a few vectors, stored by rows (torch's default) and by columns.

    python experiments/generation_speed/layout.py [--tokens 1 32]

Measures the matrices of a GPT-2 block and of its head in float32. Eight blocks are used in turn, because together
they are larger than the cache of the processor. Medians of 20 rounds in turn.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from benchmark import device_name
from torch import Tensor
from torch.nn.functional import linear

BLOCK = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
HEAD = ((50257, 768),)
LAYOUTS = {
    "rows": lambda shape: torch.randn(shape),
    "columns": lambda shape: torch.randn(shape[::-1]).t(),
}


def milliseconds(matrices: Sequence[Tensor], tokens: int) -> float:
    """Return the wall time of the products of all matrices with `tokens` vectors each, in milliseconds."""
    inputs = [torch.randn(tokens, matrix.shape[1]) for matrix in matrices]
    start = time.perf_counter()
    for vectors, matrix in zip(inputs, matrices, strict=True):
        linear(vectors, matrix)
    return 1e3 * (time.perf_counter() - start)


def measure(shapes: Sequence[tuple[int, int]], copies: int, tokens: int) -> dict[str, float]:
    """Return the milliseconds for one copy of the matrices, by layout."""
    stored = {
        name: [make(s) for _ in range(copies) for s in shapes] for name, make in LAYOUTS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in stored}
    for _ in range(20):
        for name, matrices in stored.items():
            times[name].append(milliseconds(matrices, tokens) / copies)
    return {name: statistics.median(each) for name, each in times.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 32])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(
        "| tokens | block, by rows | by columns | head, by rows | by columns |\n|---|---|---|---|---|"
    )
    with torch.inference_mode():
        for tokens in arguments.tokens:
            block, head = measure(BLOCK, 8, tokens), measure(HEAD, 1, tokens)
            cells = (block["rows"], block["columns"], head["rows"], head["columns"])
            print(f"| {tokens} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    print(
        f"\nMilliseconds; {device_name('cpu')}, {torch.get_num_threads()} threads, torch {torch.__version__}."
    )
