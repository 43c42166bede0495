"""Requirements of a task on its model and data, and of a data order on the model, checked before training starts.

The capabilities of a model are boolean attributes: `causal` (no position attends to a later one), `generates`
(generates text token by token) and `recurrent` (has a state that training can carry). `requires` of a task or an order
maps each required capability to the error message about a model without it. A model without the attribute is accepted.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

# Full keys that may be missing, because the data determine them.
FILLED_IN = ("model.vocab_size", "task.model.num_classes")
PROVISIONAL = 256  # their value before the data are read


def unmet(part: Any, model: Any) -> Iterator[str]:
    """Yield a line for the first capability that the class of a task or of an order requires and the model lacks."""
    requires: Mapping[str, str] = getattr(part, "requires", {})
    lacking = [name for name in requires if not getattr(model, name, True)]
    yield from (f"model: {type(model).__name__} {requires[name]}" for name in lacking[:1])


def other_data(task: Any, data: Any) -> Iterator[str]:
    """Yield a line if the class of a task needs another class of data module."""
    needed = getattr(task, "data_module", None)
    if needed is not None and inspect.isclass(data) and not issubclass(data, needed):
        option = needed.__name__.removesuffix("DataModule").lower()  # also the name of its file
        yield (
            f"data: {task.__name__} needs data such as data={option}, not {data.__name__}; "
            "choose another data= or another task="
        )
