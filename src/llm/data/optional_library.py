"""Libraries that only some users need; an extra of this package installs them."""

from importlib import import_module
from types import ModuleType

from llm.data.errors import DataError


def import_optional(module: str, *, library: str, extra: str, user: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: name of the module.
        library: name of the package on the package index.
        extra: the extra that installs it.
        user: what needs it, for the message.

    Raises:
        DataError: the library is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise DataError(f"{user}: needs {library}; run pip install 'llm-hydra[{extra}]'") from None
