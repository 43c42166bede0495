"""Tokens per second of training and of generation, and the memory of a step and of the cache, of `study.py`'s families.

    python experiments/families/measure.py

The widths are those of settings.yaml. All families are timed in turn, so that other work on the machine slows down all
of them. The memory of a step is that of its tensors at the peak, counted without computing.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
import torch.nn.functional as F
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from study import FAMILIES, HERE, fixed, shape

from llm.config.build import build
from llm.models.gpt import GPT
from llm.planning.memory import measure_step
from llm.training.setup import resolve_vocabulary

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
TOKENS_PER_STEP = 4096
MEASURES = (
    *("tokens/s in training", "tokens/s in generation"),
    *("MiB of a training step", "KiB of a full cache"),
)
VOCAB_SIZE = 257  # bytes, and the end of a text


def configuration(settings: dict[str, object], context: int) -> DictConfig:
    """Return the configuration of a family's runs at a length of the context."""
    words = [f"hydra.searchpath=[file://{HERE / 'conf'}]", "sweep=families", *fixed(settings)]
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        config = compose("train", overrides=[*words, *shape(context)])
    resolve_vocabulary(config, VOCAB_SIZE)
    return config


def make(config: DictConfig) -> GPT:
    """Return a family's model, with random weights."""
    torch.manual_seed(0)
    return build(config.model)


def peak_of_step(config: DictConfig, context: int) -> float:
    """Return the memory of a training step at its peak in bytes: weights, gradients, AdamW and activations."""

    def batch() -> dict[str, torch.Tensor]:
        tokens = torch.zeros(TOKENS_PER_STEP // context, context, dtype=torch.long)
        return {"tokens": tokens, "targets": tokens}

    return measure_step(lambda: build(config.task), batch, dtype=torch.float32).peak().total


def training(model: GPT, context: int) -> Callable[[], None]:
    """Return a function that makes a step of training: forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(256, (TOKENS_PER_STEP // context, context + 1))

    def step() -> None:
        logits = model.train()(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def seconds_per_token(model: GPT, context: int, *, new: int) -> float:
    """Return the time of a token at the end of a context, with a cache of the tokens before it."""
    tokens = torch.randint(256, (1, context))
    cache = model.eval().new_cache(1, context)
    model(tokens[:, :-new], cache=cache)
    start = time.perf_counter()
    for token in tokens[:, -new:].split(1, dim=1):
        model(token, cache=cache)
    return (time.perf_counter() - start) / new


def times(models: list[GPT], context: int, *, rounds: int, new: int) -> Iterator[list[float]]:
    """Yield for each model the median time of a training token and of a generated one, in seconds."""
    steps = [training(model, context) for model in models]
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in models]
    for _ in range(rounds + 1):
        for model, step, (trained, generated) in zip(models, steps, found, strict=True):
            start = time.perf_counter()
            step()
            trained.append((time.perf_counter() - start) / TOKENS_PER_STEP)
            generated.append(seconds_per_token(model, context, new=new))
    yield from ([median(each[1:]) for each in pair] for pair in found)  # the first round warms up


def table(title: str, families: list[str], contexts: list[int], rows: list[list[str]]) -> str:
    """Format a table with a row for each family and a column for each context."""
    head = f"| {title} | {' | '.join(f'{context:,}' for context in contexts)} |"
    named = zip(families, zip(*rows, strict=True), strict=True)
    body = [f"| `{family}` | {' | '.join(cells)} |" for family, cells in named]
    return "\n".join([head, f"|---|{'---:|' * len(contexts)}", *body])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32)
    args = parser.parse_args()
    selected = yaml.safe_load((HERE / "settings.yaml").read_text())
    settings = [selected[name]["settings"] for name in args.families]
    rows: dict[str, list[list[str]]] = {name: [] for name in MEASURES}
    for context in args.contexts:
        configs = [configuration(each, context) for each in settings]
        models = [make(config) for config in configs]
        found = list(times(models, context, rounds=args.rounds, new=args.new_tokens))
        cells = (
            [f"{1 / training:,.0f}" for training, _ in found],
            [f"{1 / generation:,.0f}" for _, generation in found],
            [f"{peak_of_step(config, context) / 2**20:,.0f}" for config in configs],
            [f"{model.new_cache(1, context).nbytes / 2**10:,.0f}" for model in models],
        )
        for column, values in zip(rows.values(), cells, strict=True):
            column.append(values)
    for name, columns in rows.items():
        print(table(name, list(args.families), list(args.contexts), columns), end="\n\n")
    print(
        f"Medians of {args.rounds} rounds in turn, {TOKENS_PER_STEP:,} tokens in a step, float32; "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
