"""The fingerprint of a configuration: two runs with the same fingerprint train the same model."""

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

# How long a run trains.
BUDGET = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens")
# Keys that do not change the identity of a run: hardware, loggers, callbacks, validation and budget.
IGNORE = (
    "_target_",
    "hardware",
    "logger",
    "callbacks",
    "name",
    "output_dir",
    "rerun",
    "resume",
    "dry_run",
    "match",
    "trust",
    *BUDGET,
    "trainer.val_every",
    "trainer.val_batches",
    "trainer.val_bytes",
    "trainer.log_every",
    "data.ignored",
    "data.workers",
)
# Keys inside the fingerprint that a resumed run may change if the user allows it.
CHANGEABLE = (
    "optimizer.lr",
    "optimizer.adamw_lr",
    "schedule",
    "trainer.gradient_clip",
    "trainer.accumulate",
    "data.batch_size",
)
# IGNORE without the budget, for comparing recipes.
IGNORE_BUT_BUDGET = tuple(key for key in IGNORE if key not in BUDGET)


def fingerprint(config: Any, ignore: Collection[str] = IGNORE) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a configuration's resolved values.

    Args:
        config: a composed tree or a plain dictionary; the order of its keys does not matter.
        ignore: dotted keys that are left out, with all keys below them.
    """
    meaning = json.dumps(_meaning(config, ignore), sort_keys=True, default=str)
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def recipe(config: DictConfig) -> str:
    """Return the fingerprint with the budget and without the seed, to find runs that differ only in their seed.

    Only the seed at the root is replaced, because all others refer to it.
    """
    config = config.copy()
    config.seed = 0
    return fingerprint(config, IGNORE_BUT_BUDGET)


def fingerprint_changes(old: Any, new: Any) -> dict[str, str]:
    """Return the differences that change the fingerprint: `old → new` by full key.

    A value that one side has not filled in yet (`???`) does not count as different.
    """
    before, after = _meaning(old, IGNORE), _meaning(new, IGNORE)
    found = {
        key: f"{_shown(before, key)} → {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _shown(before, key) != _shown(after, key)
        and "???" not in (before.get(key), after.get(key))
    }
    return {
        key: change
        for key, change in found.items()
        if not any(found.get(shorter) == change for shorter in _suffixes(key))
    }


def is_changeable(key: str) -> bool:
    """Return whether a run may resume with another value of a key."""
    return is_among(key.removeprefix("task."), CHANGEABLE)


def _suffixes(key: str) -> Iterator[str]:
    """Return the shorter keys at the end of a key: for `task.optimizer.lr`, `optimizer.lr` and `lr`."""
    words = key.split(".")
    return (".".join(words[first:]) for first in range(1, len(words)))


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], default=str, ensure_ascii=False) if key in values else "absent"


def _meaning(config: Any, ignore: Collection[str]) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    return {key: value for key, value in _leaves(plain, "") if not is_among(key, ignore)}


def is_among(key: str, keys: Collection[str]) -> bool:
    """Return whether a full key is one of `keys` or below one of them."""
    return any(key == k or key.startswith((f"{k}.", f"{k}[", f"{k} (")) for k in keys)


def _leaves(plain: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield each value that is not a dictionary or is empty, with its dotted key.

    If all values of a dictionary are nodes, as in preprocessing steps, their order is yielded too.
    """
    if isinstance(plain, dict) and plain:
        if all(isinstance(value, dict) and "_target_" in value for value in plain.values()):
            yield f"{key} (order)", list(plain)
        for name, value in plain.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, plain
