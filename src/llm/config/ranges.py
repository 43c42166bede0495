"""Valid ranges of parameters, by name. A name means one thing in the whole package.

torch's optimizers check only some arguments, after the folder of the run is made. A mask or a norm accepts any number.
A size that is far too large ends the process. What our dataclasses check themselves is not repeated here.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        bounds = {
            "{} or more": self.at_least,
            "more than {}": self.above,
            "at most {}": self.at_most,
            "less than {}": self.below,
        }
        given = (words.format(bound) for words, bound in bounds.items() if math.isfinite(bound))
        return " and ".join(given)


NOT_NEGATIVE = Range(at_least=0)
POSITIVE = Range(above=0)
COUNT = Range(at_least=1)
SHARE = Range(at_least=0, at_most=1)
PROPER_SHARE = Range(at_least=0, below=1)

# The maxima are far above the sizes of every trained model, but a model on `meta` is still built in seconds.
SIZES: dict[str, Range] = {
    **dict.fromkeys(("num_layers", "num_segments"), Range(at_least=1, at_most=2**10)),
    **dict.fromkeys(
        ("dim", "num_heads", "num_kv_heads", "head_dim"), Range(at_least=1, at_most=2**20)
    ),
    **dict.fromkeys(("hidden_dim", "vocab_size"), Range(at_least=1, at_most=2**24)),
    "context_length": Range(at_least=1, at_most=2**30),
}
MAY_BE_INFINITE = {"val_bytes"}  # infinity means the whole validation split
RANGES: dict[str, Range] = {
    **SIZES,
    # optimizers and schedules
    **dict.fromkeys(("lr", "adamw_lr", "weight_decay", "eps", "lr_decay"), NOT_NEGATIVE),
    **dict.fromkeys(("initial_accumulator_value", "warmup_steps", "final_ratio"), NOT_NEGATIVE),
    **dict.fromkeys(("betas", "momentum", "dampening"), PROPER_SHARE),
    "decay_fraction": SHARE,
    # the model and its adapter
    **dict.fromkeys(
        (
            *("multiple_of", "rank", "chunk_size", "expand", "state_dim", "value_head_dim"),
            *("latent_dim", "query_latent_dim", "value_dim", "kernel_size", "num_groups"),
            "num_key_heads",
        ),
        Range(at_least=1, at_most=2**20),
    ),
    **dict.fromkeys(("theta", "std", "softcap"), POSITIVE),
    "alpha": NOT_NEGATIVE,
    "dropout": PROPER_SHARE,
    # data, tasks and keys at the root of the tree
    **dict.fromkeys(("batch_size", "group", "multiple", "min_frequency"), COUNT),
    **dict.fromkeys(("beta", "min_delta", "seconds"), NOT_NEGATIVE),
    "label_smoothing": PROPER_SHARE,
    "max_shard_gb": POSITIVE,
    "seed": Range(at_least=0, below=2**32),  # the range of NumPy's seeds
    # thousands of processes or threads would exhaust a machine
    **dict.fromkeys(("devices", "threads"), Range(at_least=1, at_most=2**10)),
    "workers": Range(at_least=0, at_most=2**10),
    "num_nodes": Range(at_least=1, at_most=2**16),
}
# Keys of commands, at the root of the tree.
ROOT_RANGES: dict[str, Range] = {
    "max_tokens": NOT_NEGATIVE,
    "best_of": Range(at_most=2**20),
    "mfu": Range(above=0, at_most=1),
    "confidence": Range(above=0, below=1),
}
# Packages whose parameters are checked; in a user's function, a name may mean something else.
OURS = ("llm.", "torch.optim.")

# Texts that name a file, a folder or a run. Null is allowed; an empty text would mean the current folder.
NAMES = (
    *("path", "output_dir", "name", "file", "file_name", "base", "against"),
    *("validation_path", "test_path", "prompts_file"),
)


def out_of_range(config: DictConfig, sections: Collection[str]) -> Iterator[str]:
    """Yield a line for each number out of range and each empty name.

    A value that refers to another key is reported only there.

    Args:
        config: the composed tree.
        sections: the keys at its root to check.
    """
    for key, name, value in _values(config, "", is_ours=True, names=sections):
        if isinstance(value, str):
            if name in NAMES and not value.strip():
                yield f"{key}: is empty; set a value, or leave {key}= out"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield from _number(key, name, value)


def _values(
    node: Any, key: str, *, is_ours: bool, name: str = "", names: Any = None
) -> Iterator[tuple[str, str, Any]]:
    """Yield the values at all depths that are parameters of our packages: full key, parameter and value."""
    if isinstance(node, DictConfig) and "_target_" in node:
        is_ours = str(node._get_node("_target_")).startswith(OURS)
    if names is None:
        names = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for at in names:
        if OmegaConf.is_missing(node, at) or OmegaConf.is_interpolation(node, at):
            continue
        value, of = node[at], name if isinstance(node, ListConfig) else str(at)
        child = f"{key}[{at}]" if isinstance(node, ListConfig) else f"{key}.{at}".lstrip(".")
        if isinstance(value, DictConfig | ListConfig):
            yield from _values(value, child, is_ours=is_ours, name=of)
        elif is_ours:
            yield child, of, value


def _number(key: str, name: str, value: float) -> Iterator[str]:
    if value == math.inf and name in MAY_BE_INFINITE:
        return
    allowed = RANGES.get(name) or ROOT_RANGES.get(key)
    if not math.isfinite(value):
        yield f"{key}: {value} is not a finite number; use a finite number"
    elif allowed and value not in allowed:
        yield f"{key}: {value} is out of range; give {allowed}"
