"""The files of a path: a file, a folder, a glob pattern, or several of these."""

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.config.errors import nearest
from llm.data.errors import DataError
from llm.terminal import shell

SAVED = ("dataset_info.json", "dataset_dict.json")  # files that save_to_disk of `datasets` writes
KEYS = ("path", "validation_path", "test_path")  # keys of data that name files
MOST_NAMED = 6  # kinds of files listed in a warning
ADVICE = "name a file, a folder or a pattern"


def expand(
    paths: Sequence[str | Path],
    suffixes: Sequence[str],
    *,
    warn: Callable[[str], None],
) -> Iterator[Path]:
    """Yield the files of paths, in order.

    Args:
        paths: files of any name; folders with subfolders, but without hidden files and run directories; glob patterns.
        suffixes: suffixes of the files to read in a folder, in any case; they may be gzipped.
        warn: called with a line about the unread files of a folder.

    Raises:
        DataError: a path does not exist, or is a folder without such files.
    """
    require_paths({"path": [str(path) for path in paths]})
    for path in (Path(path).expanduser() for path in paths):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from _in_folder(path, tuple(map(str.lower, suffixes)), warn=warn)
        else:
            files = [file for file in _matching(path) if file.is_file()]
            if not files:
                raise DataError(f"data.path: {path} matches no file; {ADVICE}")
            yield from files


def require_paths(
    data: Mapping[str, Any], *, keys: Sequence[str] = KEYS, section: str = "data."
) -> None:
    """Raise an error for data paths that do not exist.

    Args:
        data: the data section of a configuration.
        keys: keys that name files.
        section: prefix of the keys in messages.

    Raises:
        DataError: a path is neither a file, a folder nor a pattern that matches a file.
    """
    for key in keys:
        value = data.get(key)
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, Sequence):
            continue  # None, or a download
        if not given:
            raise DataError(f"{section}{key}: is empty; {ADVICE}")
        for path in map(str, given):
            if not path.strip():
                continue  # the check of the configuration reports blank paths
            target = Path(path).expanduser()
            if not target.exists() and not _matching(target):
                raise DataError(
                    f"{section}{key}: {path} does not exist; {_nearest(target) or ADVICE}"
                )


def _matching(pattern: Path) -> list[Path]:
    return sorted(map(Path, glob.glob(str(pattern), recursive=True)))  # noqa: PTH207 - absolute patterns


def _nearest(target: Path) -> str:
    """Suggest the file or folder with the most similar name."""
    try:
        names = [each.name for each in target.parent.iterdir()]
    except OSError:
        return ""
    near = nearest(target.name, names)
    return f"did you mean {target.with_name(near)}?" if near else ""


def _in_folder(
    folder: Path, suffixes: tuple[str, ...], *, warn: Callable[[str], None]
) -> list[Path]:
    if any((folder / name).is_file() for name in SAVED):
        raise DataError(
            f"{folder}: is a dataset that save_to_disk wrote, not a folder of text files; read it with "
            f"data=huggingface {shell.quoted_word(f'data.source.path={folder}')}"
        )
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    runs = {file.parent for file in files if file.name == "run.json"}
    shown = [
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and runs.isdisjoint(file.parents)
    ]
    found = [file for file in shown if _name(file).endswith(suffixes)]
    rest = (file for file in shown if not _name(file).endswith(suffixes))
    others = Counter(Path(_name(file)).suffix or file.name for file in rest)
    kinds = [f"{number:,} {kind}" for kind, number in others.most_common(MOST_NAMED)]
    more = ["…"] if len(others) > MOST_NAMED else []
    files = "1 file" if others.total() == 1 else f"{others.total():,} files"
    left_out = f"{files} ({', '.join([*kinds, *more])})"
    if not found:
        there = f" but {left_out}" if others else ""
        raise DataError(
            f"{folder}: contains no file that ends in {', '.join(suffixes)}{there}; set data.suffixes to other suffixes"
        )
    if others:
        warn(f"{folder}: left out {left_out}; set data.suffixes to read them")
    return found


def _name(file: Path) -> str:
    return file.name.lower().removesuffix(".gz")
