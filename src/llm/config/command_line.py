"""Parsing of a command line into overrides and flags."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.utils import get_args_parser

from llm.config.errors import ConfigError
from llm.config.texts import as_text, quoted_text


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        overrides: the words that set or delete keys.
        args: the flags, as returned by Hydra's parser.
    """

    name: str
    overrides: list[str]
    args: Any
    parser: Any

    @property
    def config_name(self) -> str:
        """The name of the primary config."""
        return self.args.config_name or self.name

    @property
    def is_sweep(self) -> bool:
        """Whether overrides may have several values."""
        return bool(self.args.multirun)

    @property
    def composes_to_show(self) -> bool:
        """Whether it requests output about the composed configuration."""
        return bool(self.args.cfg or self.args.help or self.args.info)

    @property
    def shows(self) -> bool:
        """Whether it requests output instead of a run."""
        args = self.args
        return bool(self.composes_to_show or args.shell_completion or args.hydra_help)

    @property
    def flags(self) -> list[str]:
        """The flags that further processes of the command need too."""
        given = {"--config-dir": self.args.config_dir, "--config-name": self.args.config_name}
        return [word for flag, value in given.items() if value for word in (flag, value)]


def parse(name: str, words: Sequence[str], *, folders: str | None = None) -> CommandLine:
    """Parse the words after a command. The key `folders` collects words that are folders.

    Raises:
        ConfigError: a flag is not supported.
        SystemExit: a flag is unknown; the parser has printed the error.
    """
    is_sweep = "-m" in words or "--multirun" in words
    words = gather_folders(words, folders) if folders else words
    # Overrides come last, because the parser accepts no flag between two of them.
    words = sorted((as_text(word, is_sweep=is_sweep) for word in words), key=is_override)
    parser = get_args_parser()
    args = parser.parse_args(words)
    if args.experimental_rerun is not None:  # it loads a pickle, which can execute code
        raise ConfigError(
            "--experimental-rerun: is not supported; run the same command again to resume its run"
        )
    return CommandLine(name, args.overrides, args, parser)


def gather_folders(words: Sequence[str], key: str) -> list[str]:
    """Replace all folders on a command line by one override of `key`.

    A word is a folder if it has no equals sign or exists: names of runs contain equals signs.
    """
    positional = get_args_parser().parse_known_intermixed_args(words)[0].overrides
    folders = [word for word in positional if "=" not in word or os.path.isdir(word)]  # noqa: PTH112
    others = [word for word in words if word not in folders]
    return [*others, f"{key}=[{','.join(map(quoted_text, folders))}]"] if folders else others


def is_override(word: str) -> bool:
    """Return whether a word sets or deletes a key."""
    return word.startswith(("+", "~")) or ("=" in word and not word.startswith("-"))


def config_dir(folder: str | None) -> str | None:
    """Return the absolute path of the user's folder of configs.

    Raises:
        ConfigError: the folder does not exist.
    """
    if folder is None:
        return None
    path = os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111
    if not os.path.isdir(path):  # noqa: PTH112
        raise ConfigError(f"--config-dir {folder}: no such folder; pass the folder of your configs")
    return path
