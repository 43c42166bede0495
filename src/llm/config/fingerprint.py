"""The meaning of a configuration, in sixteen characters: two runs with the same one learn the same."""

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

# How long it runs.
BUDGET = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens")
# What may change without making it another run: where and how fast it runs, who watches, how long.
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
    "data.cache_dir",
    "data.ignored",
    "data.workers",
)
# What of a run's meaning may change from one of its steps on, where the user allows it: how it learns, not what.
CHANGEABLE = (
    "optimizer.lr",
    "optimizer.adamw_lr",
    "schedule",
    "trainer.gradient_clip",
    "trainer.accumulate",
    "data.batch_size",
)
# The same but how long: what may change without making it other work.
WATCHED = tuple(key for key in IGNORE if key not in BUDGET)


def fingerprint(config: Any, ignore: Collection[str] = IGNORE) -> str:
    """A short SHA-256 of a configuration's resolved values.

    Args:
        config: a composed tree or a plain dictionary; the order of its keys does not matter.
        ignore: dotted keys whose values, and all beneath them, do not count.
    """
    meaning = json.dumps(_meaning(config, ignore), sort_keys=True, default=str)
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def recipe(config: DictConfig) -> str:
    """The fingerprint of all but the seed, the budget among it: runs with the same recipe are repetitions.

    Args:
        config: a composed tree, whose other seeds follow `seed`.
    """
    config = config.copy()
    config.seed = 0
    return fingerprint(config, WATCHED)


def fingerprint_difference(old: Any, new: Any, ignore: Collection[str] = IGNORE) -> list[str]:
    """What would change the fingerprint: `full.key: old → new`, one line each."""
    return [f"{key}: {change}" for key, change in fingerprint_changes(old, new, ignore).items()]


def fingerprint_changes(old: Any, new: Any, ignore: Collection[str] = IGNORE) -> dict[str, str]:
    """What would change the fingerprint: `old → new` by full key.

    A value that one side does not know yet (`???`) does not differ.
    """
    before, after = _meaning(old, ignore), _meaning(new, ignore)
    found = {
        key: f"{_shown(before, key)} → {_shown(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _shown(before, key) != _shown(after, key)
        and "???" not in (before.get(key), after.get(key))
    }
    return {
        key: change
        for key, change in found.items()
        if not any(found.get(shorter) == change for shorter in _endings(key))
    }


def is_changeable(key: str) -> bool:
    """Whether a run may go on with another value of a key."""
    return is_among(key.removeprefix("task."), CHANGEABLE)


def _endings(key: str) -> Iterator[str]:
    """Shorter keys that one may refer to: of `task.optimizer.lr` those are `optimizer.lr` and `lr`."""
    words = key.split(".")
    return (".".join(words[first:]) for first in range(1, len(words)))


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], default=str, ensure_ascii=False) if key in values else "absent"


def _meaning(config: Any, ignore: Collection[str]) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    return {key: value for key, value in _leaves(plain, "") if not is_among(key, ignore)}


def is_among(key: str, keys: Collection[str]) -> bool:
    """Whether a full key is one of `keys`, or stands below one."""
    return any(key == k or key.startswith((f"{k}.", f"{k}[", f"{k} (")) for k in keys)


def _leaves(plain: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Each value that is no dictionary, with its dotted key; an empty dictionary is a value.

    Where all values are nodes, as in steps of preprocessing, their order has a meaning of its own.
    """
    if isinstance(plain, dict) and plain:
        if all(isinstance(value, dict) and "_target_" in value for value in plain.values()):
            yield f"{key} (order)", list(plain)
        for name, value in plain.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, plain
