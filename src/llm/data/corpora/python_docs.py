"""A corpus that needs no network: the prose of CPython's own documentation."""

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

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

# Folders that are not part of the standard library or do not document it.
SKIPPED = frozenset(
    "site-packages dist-packages test tests idle_test idlelib lib2to3 turtledemo ensurepip pydoc_data "
    "__pycache__".split()
)
MOST_REPEATED = 0.3  # maximum share of a topic, and then of a paragraph, that is in earlier text


class PythonDocs(Source):
    """The language reference and the standard library's docstrings, as paragraphs of prose.

    A document is a topic of the reference (`pydoc_data.topics`) or the docstrings of a module. The text depends on the
    version of Python. Repeated text is kept once: otherwise a third of the held-out text would be in the training
    text, because topics contain one another and modules share docstrings.
    """

    def __init__(self) -> None:
        self.name = f"python_docs (CPython {platform.python_version()})"

    def documents(self) -> Iterator[str]:
        """Yield topics, longest first, then modules by name."""
        yield from self._documents

    def fingerprint(self) -> str:
        """Return the versions of Python and of the code that extracts the prose."""
        code = (PythonDocs, prose_extraction.extract_paragraphs, deduplication.grams)
        return " ".join([self.name, *map(data_fingerprint.version_of, code)])

    @cached_property
    def _documents(self) -> list[str]:
        topics, seen = set(), set()
        texts = ["\n\n".join(prose_extraction.extract_paragraphs(topic)) for topic in _topics()]
        texts = list(
            deduplication.drop_repeated(
                sorted(texts, key=lambda t: (-len(t), t)), topics, most=MOST_REPEATED
            )
        )
        texts += ["\n\n".join(prose_extraction.extract_paragraphs(text)) for text in _docstrings()]
        kept = (
            "\n\n".join(deduplication.drop_repeated(text.split("\n\n"), seen, most=MOST_REPEATED))
            for text in texts
        )
        return [text for text in kept if text]


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics  # a Debian package leaves it out
    except ImportError:
        raise DataError(
            "python_docs: this Python has no pydoc_data; install its full standard library, "
            "or use another text, as in data=text data.path=…"
        ) from None
    return list(topics.values())


def _docstrings() -> Iterator[str]:
    """Yield the docstrings of each module of the standard library, read without importing it."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(library).parts):
            yield "\n\n".join(_docstrings_in(ast.parse(path.read_bytes())))


def _docstrings_in(node: ast.AST) -> Iterator[str]:
    """Yield the docstring of a module, class or function and those of its members, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in getattr(node, "body", []):
        yield from _docstrings_in(child)
