"""What a token file depends on, in a few characters: any change must change it."""

import hashlib
import inspect
import json
import tempfile
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from llm.tokenizers.tokenizer import Tokenizer


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_settings(settings: dict[str, object]) -> str:
    """One short name for all settings, which are plain data."""
    return digest(json.dumps(settings, sort_keys=True).encode())[:24]


def of_tokenizer(tokenizer: Tokenizer | Callable[[Iterable[str]], Tokenizer]) -> str:
    """A tokenizer is its saved file; one still to be fitted is its function and arguments.

    A function's own code counts too, as the file that it stands in. Where no lasting name can be
    given (a lambda, an argument that prints as an address), nothing is ever reused.
    """
    if isinstance(tokenizer, Tokenizer):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            tokenizer.save(path)
            return digest(path.read_bytes())
    function, arguments = tokenizer, ""
    if isinstance(tokenizer, partial):
        function, arguments = (
            tokenizer.func,
            f"{tokenizer.args} {sorted(tokenizer.keywords.items())}",
        )
    name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))} {arguments}"
    if "<" in name:
        return uuid.uuid4().hex
    return f"{name} {digest(of_code(function))}"


def of_code(thing: object) -> bytes:
    """The source file in which a function or a class stands."""
    file = inspect.getsourcefile(thing)  # pyright: ignore[reportArgumentType]
    return Path(file).read_bytes() if file else b""
