"""The ranges of numbers that a parameter can have, by its name, which means one thing in the whole package.

torch's optimizers check some of their arguments and only when they are built, which is after the run's folder
has been made; a mask or a norm computes with any number. So ranges are compared with the configuration, with
every other problem, before anything starts. What our dataclasses refuse themselves is not repeated here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, ListConfig, OmegaConf


@dataclass(frozen=True)
class Range:
    """An interval; a bound that is None is not there."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        bounds = {
            "{} or more": self.at_least,
            "more than {}": self.above,
            "at most {}": self.at_most,
            "less than {}": self.below,
        }
        given = (words.format(bound) for words, bound in bounds.items() if bound is not None)
        return " and ".join(given)


NOT_NEGATIVE = Range(at_least=0)
POSITIVE = Range(above=0)
COUNT = Range(at_least=1)
SHARE = Range(at_least=0, at_most=1)
PROPER_SHARE = Range(at_least=0, below=1)

RANGES: dict[str, Range] = {
    # optimizers and schedules
    **dict.fromkeys(("lr", "adamw_lr", "weight_decay", "eps", "lr_decay"), NOT_NEGATIVE),
    **dict.fromkeys(("initial_accumulator_value", "warmup_steps", "final_ratio"), NOT_NEGATIVE),
    **dict.fromkeys(("betas", "momentum", "dampening"), PROPER_SHARE),
    "decay_fraction": SHARE,
    # the model and its adapter
    **dict.fromkeys(("hidden_dim", "multiple_of", "num_segments"), COUNT),
    **dict.fromkeys(("theta", "std"), POSITIVE),
    "alpha": NOT_NEGATIVE,
    "dropout": PROPER_SHARE,
    # data, tasks and what stands at the top of the tree
    **dict.fromkeys(("batch_size", "group", "multiple", "min_frequency"), COUNT),
    **dict.fromkeys(("beta", "workers", "min_delta", "seconds"), NOT_NEGATIVE),
    "label_smoothing": PROPER_SHARE,
    "max_shard_gb": POSITIVE,
    "seed": Range(at_least=0, below=2**32),  # what NumPy takes
}
# Whose parameters these are: a function of the user's may mean another thing by a name.
OURS = ("llm.", "torch.optim.")


def out_of_range(config: DictConfig) -> Iterator[str]:
    """Yield a line for each number that its parameter cannot have, or that no parameter can.

    A value that follows another by interpolation is not repeated.

    Args:
        config: the composed tree.
    """
    yield from _in_node(config, "", is_ours=True)


def _in_node(
    node: DictConfig | ListConfig, key: str, is_ours: bool, name: str = ""
) -> Iterator[str]:
    if isinstance(node, DictConfig) and "_target_" in node:
        is_ours = str(node._get_node("_target_")).startswith(OURS)
    for at in node.keys() if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, at) or OmegaConf.is_interpolation(node, at):
            continue
        value, of = node[at], name if isinstance(node, ListConfig) else str(at)
        child = f"{key}[{at}]" if isinstance(node, ListConfig) else f"{key}.{at}".lstrip(".")
        if isinstance(value, DictConfig | ListConfig):
            yield from _in_node(value, child, is_ours, of)
        elif isinstance(value, int | float) and not isinstance(value, bool) and is_ours:
            yield from _number(value, of, child)


def _number(value: float, name: str, key: str) -> Iterator[str]:
    if not math.isfinite(value):
        yield f"{key}: {value} is not a finite number; give one that is"
    elif name in RANGES and value not in RANGES[name]:
        yield f"{key}: {value} is out of range; give {RANGES[name]}"
