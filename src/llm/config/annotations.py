"""Type annotations of parameters, and whether a value or the product of a target fits one."""

import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, is_typeddict

TOWER = {float: (int, float), complex: (int, float, complex)}  # PEP 484: an int fits a float
PLAIN = (bool, int, float, str, bytes, list)
EMPTY = inspect.Parameter.empty


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or function, with their annotations evaluated if possible.

    A constructor with `**shared` also has the parameters of the parent class, except those named in the class attribute
    `supplied`, for which it passes its own values.
    """
    if inspect.isclass(target) and _constructor_owner(target) == "torch.nn.modules.module.Module":
        return {}  # without its own constructor a module takes no argument, although torch's has **kwargs
    try:
        signature = inspect.signature(target, eval_str=True)
    except NameError:
        signature = inspect.signature(target)
    found = dict(signature.parameters)
    shared = found.get("shared")
    if inspect.isclass(target) and shared and shared.kind is inspect.Parameter.VAR_KEYWORD:
        del found["shared"]
        known = {*found, *getattr(target, "supplied", ())}
        inherited = parameters(target.__bases__[0])
        found |= {name: each for name, each in inherited.items() if name not in known}
    return found


def _constructor_owner(target: type) -> str:
    """Return the path of the class that a constructor is inherited from; torch.compile replaces that of `nn.Module`."""
    owner = next(each for each in target.__mro__ if "__init__" in vars(each))
    return f"{owner.__module__}.{owner.__qualname__}"


def product(target: Callable[..., Any]) -> Any:
    """Return the type of a target's result: the class itself, or the return annotation of a function."""
    if inspect.isclass(target):
        return target
    try:
        returned = inspect.signature(target, eval_str=True).return_annotation
    except NameError:
        return Any
    return Any if returned is EMPTY else returned


def is_unchecked(hint: Any) -> bool:
    """Return whether an annotation is missing, `Any` or otherwise impossible to check with `isinstance`."""
    if hint in (Any, EMPTY, object):
        return True
    origin = get_origin(hint) or hint
    if origin in (None, Literal, Union) or is_typeddict(origin):
        return False
    try:
        issubclass(object, origin)
    except TypeError:  # not a class, or a protocol that is not checked at run time
        return True
    return False


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone. `Annotated[T, …]` and a `NewType` of T count as `T`."""
    if get_origin(hint) is Annotated:
        return alternatives(get_args(hint)[0])
    if isinstance(hint, NewType):
        return alternatives(hint.__supertype__)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(a for member in get_args(hint) for a in alternatives(member))
    return (hint,)


def accepts(hint: Any, value: Any) -> bool:
    """Return whether plain data has the annotated type; nodes in it are accepted.

    A list fits any sequence or tuple, an int fits a float, a bool fits neither int nor float.
    """
    return any(_accepts(member, value) for member in alternatives(hint))


def _accepts(hint: Any, value: Any) -> bool:
    if is_unchecked(hint) or not _is_plain(value):
        return True
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if isinstance(value, list):
        return (
            _is_sequence(origin)
            and _lengths_agree(origin, arguments, value)
            and all(accepts(element_hint(hint, i), item) for i, item in enumerate(value))
        )
    if isinstance(value, dict):
        return _is_mapping(origin) and all(
            accepts(element_hint(hint, name), item) for name, item in value.items()
        )
    if origin is Literal:  # compared with the type: True equals 1
        return any(value == each and type(value) is type(each) for each in arguments)
    if isinstance(value, bool) and hint in (int, *TOWER):
        return False
    kind = type(None) if hint is None else TOWER.get(origin, origin)
    if is_typeddict(origin) or not isinstance(value, kind):
        return False
    if isinstance(value, str | bytes) and arguments:  # str fits Sequence[str], not Sequence[int]
        return all(accepts(arguments[0], item) for item in value[:1])
    return True


def conform(value: Any, hint: Any) -> Any:
    """Convert an accepted value to the annotated type: YAML has no tuples, and may write 1 for 1.0."""
    origins = [get_origin(member) or member for member in alternatives(hint)]
    if type(value) is int and float in origins and int not in origins:
        return float(value)
    if not isinstance(value, list):
        return value
    items = [conform(item, element_hint(hint, at)) for at, item in enumerate(value)]
    return (
        tuple(items) if tuple in origins and not {list, Sequence, Iterable} & {*origins} else items
    )


def _is_plain(value: Any) -> bool:
    """Return whether a value is plain data: not a node, missing or unresolved."""
    if isinstance(value, dict):
        return "_target_" not in value
    return value is None or (isinstance(value, PLAIN) and value != "???")


def element_hint(hint: Any, at: Any) -> Any:
    """Return the annotation of the element at an index of a sequence or a key of a mapping."""
    wanted = _is_sequence if isinstance(at, int) else _is_mapping
    for member in alternatives(hint):
        origin, arguments = get_origin(member) or member, get_args(member)
        if wanted(origin) and arguments:
            return _argument(origin, arguments, at)
    return Any


def _argument(origin: Any, arguments: tuple[Any, ...], at: Any) -> Any:
    if origin is tuple and arguments[-1] is not Ellipsis:
        return arguments[at] if at < len(arguments) else Any
    return arguments[0] if isinstance(at, int) else arguments[-1]


def _lengths_agree(origin: Any, arguments: tuple[Any, ...], value: list[Any]) -> bool:
    fixed = origin is tuple and bool(arguments) and arguments[-1] is not Ellipsis
    return not fixed or len(arguments) == len(value)


def _is_sequence(origin: Any) -> bool:
    """Return whether a class accepts a list: it is a base of `list`, or a tuple."""
    is_checkable = inspect.isclass(origin) and not is_typeddict(origin)
    return is_checkable and (issubclass(list, origin) or origin is tuple)


def _is_mapping(origin: Any) -> bool:
    return inspect.isclass(origin) and (is_typeddict(origin) or issubclass(dict, origin))


def positional(hint: Any) -> Sequence[Any] | None:
    """Return the types of a factory's arguments; None if they are not annotated."""
    for member in alternatives(hint):
        if get_origin(member) is Callable and isinstance(get_args(member)[0], list):
            return get_args(member)[0]
    return None


def takes_factory(hint: Any, produced: Any) -> bool:
    """Return whether an annotation accepts a factory of `produced`."""
    return any(
        is_unchecked(member)
        or member is Callable
        or (get_origin(member) is Callable and takes(get_args(member)[-1], produced))
        for member in alternatives(hint)
    )


def wants_factory(hint: Any, produced: Any) -> bool:
    """Return whether an annotation accepts a factory of `produced`, but not `produced` itself."""
    members = alternatives(hint)
    if any(get_origin(m) is not Callable and takes(m, produced) for m in members):
        return False
    results = [(m, get_args(m)[-1]) for m in members if get_origin(m) is Callable]
    return any(
        not takes(m, produced) or (not is_unchecked(result) and takes(result, produced))
        for m, result in results
    )


def takes(hint: Any, produced: Any) -> bool:
    """Return whether the product of a target fits an annotation."""
    made = alternatives(produced)
    return any(all(_takes(slot, one) for one in made) for slot in alternatives(hint))


def _takes(slot: Any, made: Any) -> bool:
    if is_unchecked(slot) or is_unchecked(made):
        return True
    slot_class, made_class = _bare(slot), _bare(made)
    if not (inspect.isclass(slot_class) and inspect.isclass(made_class)):
        return slot == made
    try:
        return issubclass(made_class, slot_class)
    except TypeError:  # a protocol with data members does not support issubclass
        return True


def _bare(hint: Any) -> Any:
    """Return the class of an annotation without its parameters; for a jaxtyping array, the array's class."""
    hint = type(None) if hint is None else get_origin(hint) or hint
    return getattr(hint, "array_type", hint)


def choices(hint: Any) -> list[str]:
    """Return the values that an annotation lists, as written in YAML; empty if it accepts others too.

    A sequence of listed values counts as these values.
    """
    values: list[str] = []
    for member in alternatives(hint):
        if get_origin(member) is Literal:
            values += map(str, get_args(member))
        elif member in (None, type(None)):
            values.append("null")
        elif _is_sequence(get_origin(member)) and (listed := choices(get_args(member)[0])):
            values += listed
        else:
            return []
    return list(dict.fromkeys(values))


def describe_hint(hint: Any) -> str:
    """Return an annotation as text for messages."""
    if hint is None or hint is type(None):
        return "null"
    if get_origin(hint) is Callable:
        given = positional(hint)
        names = "…" if given is None else ", ".join(map(describe_hint, given))
        return f"({names}) -> {describe_hint(get_args(hint)[-1])}"
    if len(alternatives(hint)) > 1:
        return " or ".join(describe_hint(member) for member in alternatives(hint))
    if inspect.isclass(hint) and not get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
