"""Hashes of everything that a token file depends on."""

import hashlib
import inspect
import json
import sys
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from llm.tokenizers.base import Tokenizer, TokenizerSpec


def digest(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_settings(settings: dict[str, object]) -> str:
    """Return a hash of settings, which are plain data, as 24 characters."""
    return digest(json.dumps(settings, sort_keys=True).encode())[:24]


def of_tokenizer(tokenizer: TokenizerSpec) -> str:
    """Return a hash of a tokenizer, or the name and arguments of the function that trains it.

    A function without a stable name (a lambda, or an argument printed with its address) gives a new value each time.
    """
    if isinstance(tokenizer, Tokenizer):
        return digest(tokenizer.to_json().encode())
    name = of_value(tokenizer)
    return uuid.uuid4().hex if "<" in name else name


def of_value(value: object) -> str:
    """Return a function's name and version, or the `repr` of any other value."""
    if isinstance(value, partial):
        arguments = [of_value(each) for each in value.args]
        keywords = [f"{name}={of_value(each)}" for name, each in sorted(value.keywords.items())]
        return f"{of_value(value.func)}({', '.join(arguments + keywords)})"
    if inspect.isfunction(value) or inspect.isclass(value):
        return f"{value.__qualname__} {version_of(value)}"
    return repr(value)


def version_of(thing: type | Callable[..., object]) -> str:
    """Return the version of the output of a function or class.

    It is the `DATA_VERSION` of its module, or a hash of the module's source.
    """
    module = sys.modules.get(thing.__module__)
    version = getattr(module, "DATA_VERSION", None)
    if version is not None:
        return str(version)
    file = getattr(module, "__file__", None)
    return digest(Path(file).read_bytes() if file else b"")
