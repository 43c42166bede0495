"""What a task requires of its model and of its data, asked of the objects themselves before anything heavy starts.

A model has capabilities, which are attributes that are true or false: `causal` (no position sees a later one)
and `generates` (it can write a text token by token). A task names those that it requires in `requires`, each with
what is wrong with a model that lacks it. A model that does not have the attribute at all is not refused.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from llm.config.allowlist import locate
from llm.config.annotations import parameters
from llm.config.build import build

PROVISIONAL = 256  # stands in for a vocabulary size that is known once the data have been read


def unmet(config: DictConfig, plain: Mapping[str, Any], trust: Sequence[str]) -> Iterator[str]:
    """A line where the task's data do not suit it, and one for the first capability that its model lacks.

    Args:
        config: the composed tree, in which nothing else is wrong.
        plain: the same as plain data.
        trust: packages of the user's that `_target_` may name.
    """
    node = plain.get("task")
    if not isinstance(node, Mapping):
        return
    task = locate(str(node["_target_"]), trust)
    if isinstance(data := plain.get("data"), Mapping):
        yield from _other_data(task, locate(str(data["_target_"]), trust))
    requires: Mapping[str, str] = getattr(task, "requires", {})
    if requires and isinstance(node.get("model"), Mapping):
        model = _on_meta(config, node["model"], trust)
        lacking = [name for name in requires if not getattr(model, name, True)]
        yield from (f"model: {type(model).__name__} {requires[name]}" for name in lacking[:1])


def _other_data(task: Any, data: Any) -> Iterator[str]:
    """Data of another kind than the task learns from."""
    needed = getattr(task, "data_module", None)
    if needed is not None and inspect.isclass(data) and not issubclass(data, needed):
        word = needed.__name__.removesuffix("DataModule").lower()  # its file, and its option
        yield (
            f"data: {task.__name__} learns from data such as data={word}, and these are a {data.__name__}; "
            "choose other data= or another task="
        )


def _on_meta(config: DictConfig, plain: Mapping[str, Any], trust: Sequence[str]) -> Any:
    """The task's model with shapes and without weights."""
    import torch

    is_open = plain.get("vocab_size") in (None, "???")
    takes_it = "vocab_size" in parameters(locate(str(plain["_target_"]), trust))
    extra = {"vocab_size": PROVISIONAL} if is_open and takes_it else {}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build(config.task.model, **extra)
