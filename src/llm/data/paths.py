"""Which files a path means: a file, a folder, a pattern, or several of these."""

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llm.data.errors import DataError
from llm.terminal import shell

SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk of `datasets` writes
KEYS = ("path", "validation_path", "test_path")  # of data, which name files
MOST_NAMED = 6  # kinds of files in a warning


def expand(
    paths: Sequence[str | Path],
    suffixes: Sequence[str],
    *,
    warn: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Yield the files that paths mean, in order.

    Args:
        paths: Files of any name; folders, of which the files with one of the suffixes are meant, sub-folders
            included, hidden ones and run directories not; patterns.
        suffixes: Which files of a folder are meant, in capitals too, gzipped or not.
        warn: Called with a line that counts the files of a folder that are left out.

    Raises:
        DataError: A path leads nowhere, or to a folder without such files.
    """
    require_paths({"path": [str(path) for path in paths]})
    for path in (Path(path).expanduser() for path in paths):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from _in_folder(path, tuple(each.lower() for each in suffixes), warn=warn)
        else:
            files = [file for file in _matching(path) if file.is_file()]
            if not files:
                raise DataError(
                    f"data.path: {path} matches no file; name a file, a folder or a pattern"
                )
            yield from files


def require_paths(
    data: Mapping[str, Any], *, keys: Sequence[str] = KEYS, section: str = "data."
) -> None:
    """Refuse paths of data that lead nowhere. Nothing heavy is imported for it.

    Args:
        data: The section of a configuration.
        keys: Those of its keys that name files.
        section: What stands before a key where it is typed.

    Raises:
        DataError: A path leads to no file or folder, and no file matches it as a pattern.
    """
    for key in keys:
        value = data.get(key)
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, Sequence):
            continue  # none, or something to download
        if not given:
            raise DataError(f"{section}{key}: names no file; give a file, a folder or a pattern")
        for path in map(str, given):
            if not path.strip():
                continue  # which the check refuses in every command
            place = Path(path).expanduser()
            if not place.exists() and not _matching(place):
                raise DataError(
                    f"{section}{key}: {path} does not exist; {_nearest(place) or 'name a file, a folder or a pattern'}"
                )


def _matching(pattern: Path) -> list[Path]:
    return sorted(map(Path, glob.glob(str(pattern), recursive=True)))  # noqa: PTH207 - absolute patterns


def _nearest(place: Path) -> str:
    """The file or folder whose name is most like a misspelt one, as a question."""
    try:
        names = [each.name for each in place.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(place.name, names, n=1)
    return f"did you mean {place.with_name(near[0])}?" if near else ""


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
    others = Counter(
        Path(_name(file)).suffix or file.name for file in shown if file not in {*found}
    )
    kinds = [f"{number:,} {kind}" for kind, number in others.most_common(MOST_NAMED)]
    more = ["…"] if len(others) > MOST_NAMED else []
    files = "1 file" if others.total() == 1 else f"{others.total():,} files"
    left_out = f"{files} ({', '.join([*kinds, *more])})"
    if not found:
        there = f" but {left_out}" if others else ""
        raise DataError(
            f"{folder}: holds no file that ends in {', '.join(suffixes)}{there}; name other endings in data.suffixes"
        )
    if others:
        warn(f"{folder}: left out {left_out}; data.suffixes= names the endings that are read")
    return found


def _name(file: Path) -> str:
    return file.name.lower().removesuffix(".gz")
