"""Public names have one meaning in the whole package."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import llm

ROOT = Path(llm.__file__).parent
# The same concept in several packages, with the same name on purpose.
MIRRORED_FILES = {
    "base": "what all modules of a package share",
    "errors": "the exceptions of a package",
    "bert": "BERT's network, and its weights as published",
    "gpt2": "GPT-2's tokenizer, and its weights as published",
    "mamba2": "the layer, and the weights of models of it as published",
    "huggingface": "corpora, tokenizers and weights of one publisher, each under its option",
    "run": "`weights=run` and `reward=run`",
}
MIRRORED_NAMES = {"main": "what a script begins with"}


def modules() -> Iterator[Path]:
    return (path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py")


def public(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def repeated(names: Iterator[tuple[str, Path]]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for name, path in names:
        places[name].append(str(path.relative_to(ROOT)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_file_name_occurs_twice():
    found = repeated((path.stem, path) for path in modules())
    assert {name: found[name] for name in found if name not in MIRRORED_FILES} == {}
    assert MIRRORED_FILES.keys() <= found.keys(), "exceptions that are no longer needed"


def test_no_public_function_or_class_occurs_twice():
    found = repeated((name, path) for path in modules() for name in public(path))
    assert {name: found[name] for name in found if name not in MIRRORED_NAMES} == {}
    assert MIRRORED_NAMES.keys() <= found.keys(), "exceptions that are no longer needed"
