"""The check that a function computes the recurrence of a layer, written out or in a faster form."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any


def require_recurrence(function: Callable[..., Any], *, definition: Callable[..., Any]) -> None:
    """Refuse a function that computes the recurrence of another layer.

    The functions of this package that compute a definition are in its file. One of a user takes the same arguments.

    Args:
        function: the function that a layer would call.
        definition: the written-out function of the layer.

    Raises:
        ValueError: the function does not fit the layer.
    """
    given = function.func if isinstance(function, partial) else function
    module, package = definition.__module__, definition.__module__.partition(".")[0]
    is_ours = given.__module__.partition(".")[0] == package
    keywords = _keywords(definition)
    if given.__module__ == module or (not is_ours and _takes(given, keywords)):
        return
    own = vars(inspect.getmodule(definition)).values()
    functions = [each for each in own if inspect.isfunction(each) and each.__module__ == module]
    fitting = [f"{module}.{each.__name__}" for each in functions if _takes(each, keywords)]
    raise ValueError(
        f"recurrence: {getattr(given, '__name__', given)} does not compute what {definition.__name__} does; use "
        f"{' or '.join(fitting)}, or a function of yours that takes {', '.join(keywords)}"
    )


def _keywords(function: Callable[..., Any]) -> list[str]:
    """Return the names of the keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def _takes(function: Callable[..., Any], names: Iterable[str]) -> bool:
    """Return whether a function can be called with arguments of these names."""
    try:
        inspect.signature(function).bind_partial(**dict.fromkeys(names))
    except TypeError:
        return False
    return True
