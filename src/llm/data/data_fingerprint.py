"""What a token file depends on, in a few characters: any change must change it."""

import hashlib
import inspect
import json
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from llm.tokenizers.base import Tokenizer


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_settings(settings: dict[str, object]) -> str:
    """One short name for all settings, which are plain data."""
    return digest(json.dumps(settings, sort_keys=True).encode())[:24]


def of_tokenizer(tokenizer: Tokenizer | Callable[[Iterable[str]], Tokenizer]) -> str:
    """A tokenizer is its saved file; one still to be fitted is its function and arguments.

    Where a function has no lasting name (a lambda, an argument that prints as an address), nothing
    is ever reused.
    """
    if isinstance(tokenizer, Tokenizer):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            tokenizer.save(path)
            return digest(path.read_bytes())
    name = of_value(tokenizer)
    return uuid.uuid4().hex if "<" in name else name


def of_value(value: object) -> str:
    """Name a function by its name and version, anything else as it prints."""
    if isinstance(value, partial):
        arguments = [of_value(each) for each in value.args]
        keywords = [f"{name}={of_value(each)}" for name, each in sorted(value.keywords.items())]
        return f"{of_value(value.func)}({', '.join(arguments + keywords)})"
    if inspect.isfunction(value) or inspect.isclass(value):
        return f"{value.__qualname__} {version_of(value)}"
    return repr(value)


def version_of(thing: type | Callable[..., object]) -> str:
    """Return the version of what a function or a class makes of a text.

    It is the `DATA_VERSION` of its module, which is raised when the result changes; a module without one, such as a
    user's own, is its source.
    """
    module = sys.modules.get(thing.__module__)
    version = getattr(module, "DATA_VERSION", None)
    if version is not None:
        return str(version)
    file = getattr(module, "__file__", None)
    return digest(Path(file).read_bytes() if file else b"")
