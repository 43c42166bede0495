"""The words of a command line: which are overrides, which are flags."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.utils import get_args_parser

from llm.config.errors import ConfigError
from llm.config.texts import as_text, quoted_text


@dataclass(frozen=True)
class CommandLine:
    """A command line, parsed.

    Attributes:
        name: of the command.
        overrides: the words that set or delete keys.
        args: the flags, as Hydra's parser has them.
        parser: which parsed them.
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
        """Whether the configuration is to be shown."""
        return bool(self.args.cfg or self.args.help or self.args.info)

    @property
    def shows(self) -> bool:
        """Whether something is to be shown and nothing to be run."""
        args = self.args
        return bool(self.composes_to_show or args.shell_completion or args.hydra_help)

    @property
    def flags(self) -> list[str]:
        """The flags that each process of the command needs as well, as they were typed."""
        given = {"--config-dir": self.args.config_dir, "--config-name": self.args.config_name}
        return [word for flag, value in given.items() if value for word in (flag, value)]


def parse(name: str, words: Sequence[str], *, folders: str | None = None) -> CommandLine:
    """Parse the words behind a command.

    Args:
        name: the command.
        words: what was typed behind it.
        folders: the key that takes words which are not overrides.

    Raises:
        ConfigError: a flag is not supported.
        SystemExit: a flag is unknown; the parser has said so.
    """
    is_sweep = "-m" in words or "--multirun" in words
    words = gathered(words, folders) if folders else words
    # Overrides last: the parser accepts no flag between two of them.
    words = sorted((as_text(word, is_sweep=is_sweep) for word in words), key=is_override)
    parser = get_args_parser()
    args = parser.parse_args(words)
    if args.experimental_rerun is not None:  # it opens a pickle
        raise ConfigError(
            "--experimental-rerun: is not supported; the same command resumes its run"
        )
    return CommandLine(name, args.overrides, args, parser)


def gathered(words: Sequence[str], key: str) -> list[str]:
    """Return a command line whose folders have become one override of `key`.

    A folder is a word that sets no key, or that exists: names of runs have equals signs in them.
    """
    positional = get_args_parser().parse_known_intermixed_args(words)[0].overrides
    folders = [word for word in positional if "=" not in word or os.path.isdir(word)]  # noqa: PTH112
    others = [word for word in words if word not in folders]
    return [*others, f"{key}=[{','.join(map(quoted_text, folders))}]"] if folders else others


def is_override(word: str) -> bool:
    """Return whether a word sets or deletes a key, and is not a flag or the value of one."""
    return word.startswith(("+", "~")) or ("=" in word and not word.startswith("-"))


def config_dir(folder: str | None) -> str | None:
    """Return the user's folder of configs as an absolute path; a leading `~` is the home folder.

    Raises:
        ConfigError: there is no such folder.
    """
    if folder is None:
        return None
    place = os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111
    if not os.path.isdir(place):  # noqa: PTH112
        raise ConfigError(
            f"--config-dir {folder}: no such folder; name one that holds your configs"
        )
    return place
