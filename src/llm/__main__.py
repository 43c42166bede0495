"""`llm VERB …`: picks the app and lets Hydra compose its configuration.

Nothing heavy is imported before a verb is known: help and completion answer at once.
"""

import importlib
import os
import sys
from typing import NamedTuple

from llm import __version__


class Verb(NamedTuple):
    """What a verb is: the module that does it, a line of help and an example."""

    module: str
    help: str
    example: str


VERBS = {
    "train": Verb(
        "llm.apps.train",
        "pretrain a model and watch it speak",
        "llm train model=llama size=micro data=python_docs trainer.max_steps=500",
    ),
    "generate": Verb(
        "llm.apps.generate",
        "let a trained model go on with a text",
        'llm generate run=outputs/pretraining/first prompt="The class statement"',
    ),
}

# Values of these keys are a person's text: taken as they stand, not by Hydra's grammar.
LITERAL = {"generate": ("prompt", "stop")}


def main() -> None:
    """Run the verb on the command line; a wrong command or configuration exits with status 2."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(f"llm {__version__}")
    elif command in ("-sc", "--shell-completion"):
        complete(rest)
    elif command in VERBS:
        run(command, rest)
    else:
        fail(f"llm {command}: no such verb; {_suggestion(command)}")


def usage() -> str:
    """What `llm --help` prints: each verb with an example."""
    lines = ["llm VERB [key=value …]", ""]
    for name, verb in VERBS.items():
        lines += [f"  {name:10s} {verb.help}", f"{'':13s}{verb.example}", ""]
    return "\n".join(
        [
            *lines,
            "llm VERB --help           the groups, options and values of a verb",
            "llm VERB … --cfg job      the composed configuration, nothing is run",
            "llm VERB … -m key=a,b     one run for each value",
            'eval "$(llm -sc install=bash)"    tab completion; also zsh, fish',
            "llm --version",
        ]
    )


def run(name: str, arguments: list[str]) -> None:
    """Hand a verb's arguments to Hydra, and say what is wrong with them in lines of our own."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from llm.config.errors import ConfigError

    sys.argv = ["llm", *(literal(argument, LITERAL.get(name, ())) for argument in arguments)]
    # Hydra then raises instead of printing: the traceback of a crash is whole, and mistakes are ours to say.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        importlib.import_module(VERBS[name].module).main()
    except ConfigError as error:
        fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        fail(str(error))


def literal(argument: str, keys: tuple[str, ...]) -> str:
    """An argument quoted for Hydra, if its key is among those whose value is a person's text."""
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in keys:
        return argument
    return argument


def complete(arguments: list[str]) -> None:
    """Answer a shell that asks for completions."""
    raise NotImplementedError


def fail(message: str) -> None:
    """Print what is wrong and leave with status 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def _suggestion(word: str) -> str:
    from llm.config.errors import suggestion

    return suggestion(word, VERBS)


if __name__ == "__main__":
    main()
