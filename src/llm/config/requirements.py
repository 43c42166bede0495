"""What a task requires of its model and of its data, read from the objects themselves before anything heavy starts.

A model has capabilities, which are attributes that are true or false: `causal` (no position sees a later one)
and `generates` (it can write a text token by token). A task names those that it requires in `requires`, each with
what is wrong with a model that lacks it. A model that does not have the attribute at all is not refused.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

PROVISIONAL = 256  # in place of a vocabulary size that is known once the data have been read


def unmet(task: Any, model: Any) -> Iterator[str]:
    """Yield a line for the first capability that a task requires and its model lacks.

    Args:
        task: the class of the task.
        model: its model, with or without weights.
    """
    requires: Mapping[str, str] = getattr(task, "requires", {})
    lacking = [name for name in requires if not getattr(model, name, True)]
    yield from (f"model: {type(model).__name__} {requires[name]}" for name in lacking[:1])


def other_data(task: Any, data: Any) -> Iterator[str]:
    """Yield a line if a task learns from another kind of data.

    Args:
        task: the class of the task.
        data: the class of the data module; None if there is none.
    """
    needed = getattr(task, "data_module", None)
    if needed is not None and inspect.isclass(data) and not issubclass(data, needed):
        word = needed.__name__.removesuffix("DataModule").lower()  # its file, and its option
        yield (
            f"data: {task.__name__} learns from data such as data={word}, and these are a {data.__name__}; "
            "choose other data= or another task="
        )
