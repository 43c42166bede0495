"""The settings of the book in plain torch, without any part of this project.

    python experiments/verdict/book.py the-verdict.txt --seeds 0 1 2 3 4

GPT-2's 124M shape as the book builds it: separate query, key and value matrices without bias, an untied head, torch's
default initialization, dropout on the embeddings, the attention weights and both outputs of a block. Adjacent windows
of 256 tokens are shuffled in each of ten epochs, two per step; AdamW at 4e-4 with decay 0.1. The losses are those of
`evaluate.py`: the mean over all windows of each part, without dropout, after the last step.
"""

import argparse
import time
from pathlib import Path

import tiktoken
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, DROPOUT = 50257, 256, 768, 12, 12, 0.1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.output = nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attend(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        # (B, T, C) to (B, H, T, D) and back
        parts = (
            f(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        dropout = DROPOUT if self.training else 0.0
        attended = F.scaled_dot_product_attention(*parts, dropout_p=dropout, is_causal=True)
        return self.output(attended.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.size(1)))
        return self.head(self.norm(self.blocks(self.dropout(x))))


def loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, T + 1) windows, in nats per token."""
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.inference_mode()
def mean_loss(model: nn.Module, windows: Tensor) -> float:
    """Return the mean loss over windows of equal length, without dropout."""
    model.eval()
    return float(torch.stack([loss(model, pair) for pair in windows.split(2)]).mean())


def train(training: Tensor, seed: int) -> nn.Module:
    """Train for ten epochs on (N, T + 1) windows."""
    torch.manual_seed(seed)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    for _ in range(10):
        for pair in training[torch.randperm(len(training))].split(2):
            optimizer.zero_grad()
            loss(model, pair).backward()
            optimizer.step()
    return model


def windows(text: str) -> Tensor:
    """Return (N, T + 1) windows, one for every T tokens."""
    tokens = torch.tensor(tiktoken.get_encoding("gpt2").encode(text))
    return tokens.unfold(0, CONTEXT + 1, CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    split = int(0.9 * len(text))
    training, validation = windows(text[:split]), windows(text[split:])
    print("| seed | training loss | validation loss |\n|---|---|---|")
    for seed in arguments.seeds:
        start = time.perf_counter()
        model = train(training, seed)
        seconds = time.perf_counter() - start
        print(
            f"| {seed} | {mean_loss(model, training):.3f} | {mean_loss(model, validation):.3f} |",
            f"{seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
