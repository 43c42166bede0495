"""The run-time check of shapes and types that the tests run with.

jaxtyping's import hook decorates each function of the package with `jaxtyping.jaxtyped`, which binds the arguments,
checks them before the call and again after it, whether or not an annotation names a shape. That took 60 % of the time
of a small training run. Here beartype checks a call once, and only functions whose annotations name axes get a scope
for the sizes of these axes.

An int passes for a float, as in the configuration and everywhere else in Python's type system (PEP 484).
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

# A TypeError, because the package catches it for values read from files.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
scope = functools.partial(jaxtyping.jaxtyped, "context")


def install() -> None:
    """Let jaxtyping's import hook decorate with `checked`; call it before the package is imported."""
    jaxtyping.jaxtyped = lambda typechecker: checked


def checked(target: Any) -> Any:
    """Return a function that checks its arguments and its result, or a class whose constructor does."""
    if not inspect.isclass(target):
        return _checked_function(target)
    if dataclasses.is_dataclass(target) and "__init__" in vars(target):
        target.__init__ = _checked_function(target.__init__)
    return target


def _checked_function(function: Callable[..., Any]) -> Callable[..., Any]:
    written = function.__annotations__
    hints = {name: _resolved(hint, function) for name, hint in written.items()}
    function.__annotations__ = hints
    check = functools.wraps(function)(typechecker(function))
    function.__annotations__ = check.__annotations__ = written
    if not any(map(_is_array, hints.values())):
        return check

    @functools.wraps(function)
    def in_scope(*args: Any, **kwargs: Any) -> Any:
        with scope():
            return check(*args, **kwargs)

    return in_scope


def _resolved(hint: Any, function: Callable[..., Any]) -> Any:
    """Return the type that an annotation names, or `Any` if its module does not have it yet."""
    annotated = SimpleNamespace(__annotations__={"it": hint})
    try:
        return get_type_hints(annotated, function.__globals__)["it"]
    except NameError:
        return Any


def _is_array(hint: Any) -> bool:
    is_one = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_one or any(map(_is_array, get_args(hint)))
