"""The library `gguf`, which an extra of this package installs."""

import logging
from typing import Any

from llm.data.optional_library import import_optional


def gguf_library() -> Any:
    """Return the library `gguf`.

    Raises:
        DataError: it is not installed.
    """
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it logs every file that it writes
    return import_optional("gguf", library="gguf", extra="gguf", user="GGUF")
