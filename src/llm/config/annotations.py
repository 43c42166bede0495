"""Slots: does a value, or what a target makes, fit the annotation of a parameter?"""

import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, is_typeddict

from beartype import BeartypeConf
from beartype.door import is_bearable

TOWER = BeartypeConf(is_pep484_tower=True)  # an int is good enough for a float
PLAIN = (bool, int, float, str, bytes, list)
EMPTY = inspect.Parameter.empty


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function, with their annotations evaluated where they can be."""
    constructor = getattr(target, "__init__", None) if inspect.isclass(target) else None
    if getattr(constructor, "__module__", None) == "torch.nn.modules.module":
        return {}  # a module without a constructor of its own takes nothing, whatever torch's says
    try:
        signature = inspect.signature(target, eval_str=True)
    except NameError:
        signature = inspect.signature(target)
    return dict(signature.parameters)


def product(target: Callable[..., Any]) -> Any:
    """What calling a target gives: the class itself, or the function's return annotation."""
    if inspect.isclass(target):
        return target
    try:
        returned = inspect.signature(target, eval_str=True).return_annotation
    except NameError:
        return Any
    return Any if returned is EMPTY else returned


def unknown(hint: Any) -> bool:
    """Whether a hint says nothing that can be checked."""
    return hint in (Any, EMPTY, object) or isinstance(hint, str | TypeVar)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone; `Annotated` is looked through."""
    if get_origin(hint) is Annotated:
        return alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(a for member in get_args(hint) for a in alternatives(member))
    return (hint,)


def accepts(hint: Any, value: Any) -> bool:
    """Whether plain data has the annotated type. Nodes inside it are judged elsewhere.

    A list is good for any sequence or tuple, an int for a float, a bool for neither.
    """
    return any(_accepts(member, value) for member in alternatives(hint))


def _accepts(hint: Any, value: Any) -> bool:
    if unknown(hint) or not _is_plain(value):
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
    if isinstance(value, bool) and hint in (int, float, complex):
        return False
    return is_bearable(value, hint, conf=TOWER)


def conform(value: Any, hint: Any) -> Any:
    """An accepted value as its annotation has it: YAML writes 1 for 1.0 and knows no tuples."""
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
    """Whether a value is to be judged here; nodes and what is missing or unresolved is not."""
    if isinstance(value, dict):
        return "_target_" not in value
    return value is None or (isinstance(value, PLAIN) and value != "???")


def element_hint(hint: Any, at: Any) -> Any:
    """The hint for the element of a sequence at index `at`, or of a mapping at key `at`."""
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
    """Whether a list may stand here: the class is a list's base, or a tuple."""
    return inspect.isclass(origin) and (issubclass(list, origin) or origin is tuple)


def _is_mapping(origin: Any) -> bool:
    return inspect.isclass(origin) and (issubclass(dict, origin) or is_typeddict(origin))


def positional(hint: Any) -> Sequence[Any] | None:
    """The arguments that the code gives to a factory in this slot; None where that is not said."""
    for member in alternatives(hint):
        if get_origin(member) is Callable and isinstance(get_args(member)[0], list):
            return get_args(member)[0]
    return None


def takes_factory(hint: Any, produced: Any) -> bool:
    """Whether a slot is for something to call, which gives what `produced` is."""
    for member in alternatives(hint):
        if unknown(member) or member is Callable:
            return True
        if get_origin(member) is Callable and takes(get_args(member)[-1], produced):
            return True
    return False


def wants_factory(hint: Any, produced: Any) -> bool:
    """Whether a slot is for a factory of this product and for nothing else that the product is."""
    members = alternatives(hint)
    if any(get_origin(m) is not Callable and takes(m, produced) for m in members):
        return False
    results = [(m, get_args(m)[-1]) for m in members if get_origin(m) is Callable]
    return any(
        not takes(m, produced) or (not unknown(result) and takes(result, produced))
        for m, result in results
    )


def takes(hint: Any, produced: Any) -> bool:
    """Whether what a target makes may stand in a slot."""
    made = alternatives(produced)
    return any(all(_takes(slot, one) for one in made) for slot in alternatives(hint))


def _takes(slot: Any, made: Any) -> bool:
    if unknown(slot) or unknown(made):
        return True
    slot_class, made_class = _bare(slot), _bare(made)
    if not (inspect.isclass(slot_class) and inspect.isclass(made_class)):
        return slot == made
    try:
        return issubclass(made_class, slot_class)
    except TypeError:  # a protocol with data members cannot be asked
        return True


def _bare(hint: Any) -> Any:
    """A hint's class without its parameters; of a jaxtyping array, the array's class."""
    hint = get_origin(hint) or hint
    return getattr(hint, "array_type", hint)


def choices(hint: Any) -> list[str]:
    """The values that a hint lists, as a person would write them; none where it takes others too."""
    values: list[str] = []
    for member in alternatives(hint):
        if get_origin(member) is Literal:
            values += map(str, get_args(member))
        elif member in (None, type(None)):
            values.append("null")
        else:
            return []
    return values


def describe_hint(hint: Any) -> str:
    """A hint as a person would write it."""
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
