"""Cached greedy generation of the 124M shape of GPT-2, compared with Hugging Face's `generate`.

    python experiments/generation_speed/benchmark.py

Both have the same random weights in float32 and must generate the same tokens. They are timed in turn in one process,
so that other work on the machine slows down both. The result is the median of the ratios of the rounds.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from llm.checkpoints.lazy_tensor import in_memory
from llm.generation.decoding import generate
from llm.generation.generation_settings import GenerationSettings
from llm.generation.model_loading import store_by_columns
from llm.models.gpt import GPT
from llm.nn.attention import Attention
from llm.nn.feed_forward import FeedForward
from llm.nn.norms import LayerNorm
from llm.nn.positions import Learned
from llm.weights.gpt2 import KEY_MAP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=12, help="fewer for a quick look")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=arguments.layers)).eval().to(arguments.device)
    ours = gpt2(arguments.layers)
    KEY_MAP.load(in_memory(theirs.state_dict()), ours)
    ours = store_by_columns(ours.eval().to(arguments.device))  # as `llm generate` loads a model
    prompt = torch.randint(50257, (arguments.prompt_tokens,)).tolist()

    settings = GenerationSettings(max_tokens=arguments.new_tokens)
    write_ours = partial(generate, ours, [prompt], settings=settings)
    write_theirs = partial(huggingface, theirs, prompt, arguments.new_tokens)
    if write_ours() != write_theirs():
        raise SystemExit(
            "the two programs do not generate the same tokens, so their times cannot be compared"
        )

    rounds = [
        (seconds(write_ours, arguments.device), seconds(write_theirs, arguments.device))
        for _ in range(arguments.rounds)
    ]
    print(table(rounds, arguments.new_tokens))
    print(
        f"\n{arguments.new_tokens} tokens after {arguments.prompt_tokens}, {arguments.layers} layers, "
        f"batch 1, greedy, float32, medians of {arguments.rounds} rounds in turn; "
        f"{device_name(arguments.device)}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}."
    )


def gpt2(num_layers: int) -> GPT:
    """Build the 124M shape, as `model=gpt2 size=124m` does."""
    return GPT(
        vocab_size=50257,
        context_length=1024,
        dim=768,
        num_layers=num_layers,
        position=Learned(1024, 768),
        attention=partial(Attention, num_heads=12),
        feed_forward=FeedForward,
        norm=LayerNorm,
        final_norm=LayerNorm,
    )


def huggingface(model: GPT2LMHeadModel, prompt: list[int], new_tokens: int) -> list[list[int]]:
    """Generate with Hugging Face's cached greedy decoding."""
    tokens = torch.tensor([prompt], device=model.device)
    written = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    return written[:, len(prompt) :].tolist()


def seconds(write: Callable[[], list[list[int]]], device: str) -> float:
    """Return the wall time of one call; the call returns Python integers, so the device has finished."""
    start = time.perf_counter()
    write()
    return time.perf_counter() - start


def table(rounds: list[tuple[float, float]], new_tokens: int) -> str:
    """Format both speeds and their ratio in Markdown."""
    ours, theirs = (
        statistics.median(new_tokens / s for s in column) for column in zip(*rounds, strict=True)
    )
    ratios = sorted(theirs / ours for ours, theirs in rounds)
    return "\n".join(
        [
            "| | tokens per second | ratio (lowest to highest) |",
            "|---|---|---|",
            f"| Hugging Face `generate` | {theirs:.1f} | 1 |",
            f"| `llm.generation.decoding` | {ours:.1f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
        ]
    )


def device_name(device: str) -> str:
    """Return the name of the processor or GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    names = [
        line.split(":", 1)[1].strip()
        for line in (
            Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        )
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
