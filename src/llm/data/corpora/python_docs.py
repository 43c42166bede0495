"""A corpus that every machine has: the prose of CPython's own documentation. No network."""

import ast
import platform
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from llm.data import data_fingerprint
from llm.data.corpora import deduplication, prose_extraction
from llm.data.corpora.base import Source
from llm.data.errors import DataError

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change

# Folders of the standard library that do not document it, or are not of it.
SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
    "__pycache__",
}
MOST_REPEATED = 0.3  # of a topic, and then of a paragraph, in what was kept before it


class PythonDocs(Source):
    """The language reference and the standard library's docstrings, as paragraphs of prose.

    A document is a topic of the reference (`pydoc_data.topics`) or the docstrings of a module. The
    text differs between versions of Python, so the name tells which one it is. What is said twice
    is kept once: topics contain one another, and modules share docstrings, so that otherwise a
    third of the held-out text would stand in the training text.
    """

    def __init__(self) -> None:
        self.name = f"python_docs (CPython {platform.python_version()})"

    def documents(self) -> Iterator[str]:
        """Yield topics, the largest first, then modules by name."""
        yield from self._documents

    def fingerprint(self) -> str:
        """The Python version, and the version of what picks the prose."""
        parts = (PythonDocs, prose_extraction.paragraphs, deduplication.grams)
        return " ".join([self.name, *map(data_fingerprint.version_of, parts)])

    @cached_property
    def _documents(self) -> list[str]:
        topics, seen = set(), set()
        texts = ["\n\n".join(prose_extraction.paragraphs(topic)) for topic in _topics()]
        texts = list(
            deduplication.distinct(
                sorted(texts, key=lambda t: (-len(t), t)), topics, most=MOST_REPEATED
            )
        )
        texts += ["\n\n".join(prose_extraction.paragraphs(text)) for text in _docstrings()]
        kept = (
            "\n\n".join(deduplication.distinct(text.split("\n\n"), seen, most=MOST_REPEATED))
            for text in texts
        )
        return [text for text in kept if text]


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "python_docs: this Python comes without pydoc_data: install its full standard library, "
            "or choose another text, as in data=text data.path=…"
        ) from None
    return list(topics.values())


def _docstrings() -> Iterator[str]:
    """Yield the docstrings of each module of the standard library, read without importing it."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(library).parts):
            yield "\n\n".join(_docstrings_in(ast.parse(path.read_bytes())))


def _docstrings_in(node: ast.AST) -> Iterator[str]:
    """Yield the docstring of a module, class or function and of all inside, as they stand."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in getattr(node, "body", []):
        yield from _docstrings_in(child)
