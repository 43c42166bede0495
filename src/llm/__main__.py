"""`llm VERB …`: picks the app and lets Hydra compose its configuration.

Nothing heavy is imported before there is something to run: help and completion answer at once.
"""

import contextlib
import functools
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llm import __version__, console, signals

CONF = "pkg://llm.conf"


class Verb(NamedTuple):
    """What a verb is.

    Attributes:
        module: the app, whose `main(config)` does it.
        help: what it does, in a line.
        example: a command to start from.
        texts: keys whose values are a person's own words, taken as they stand.
        folders: the key that gathers words which are no overrides: folders.
        is_heavy: whether each point of a sweep (`-m`) deserves a process of its own.
    """

    module: str
    help: str
    example: str
    texts: Sequence[str] = ()
    folders: str | None = None
    is_heavy: bool = False


# Paths are a person's words too: a run's derived name has commas and equals signs in it.
PATHS = ("weights.path", "weights.base", "reward.path", "data.path", "against", "output", "file")

VERBS = {
    "train": Verb(
        "llm.apps.train",
        "pretrain a model and watch it speak",
        "llm train model=llama size=micro trainer.max_steps=500",
        is_heavy=True,
    ),
    "plan": Verb(
        "llm.apps.plan",
        "say what a run would take, on hardware that need not be here",
        "llm plan size=124m tokenizer=gpt2 trainer.max_tokens=2.5e9 hardware=fsdp hardware.devices=8 gpu=h100",
    ),
    "generate": Verb(
        "llm.apps.generate",
        "let a trained model go on with a text",
        'llm generate weights.path=outputs/pretraining/python_docs prompt="The class statement"',
        texts=("prompt", "stop"),
    ),
    "chat": Verb(
        "llm.apps.chat",
        "talk with a model that was trained on conversations",
        "llm chat weights.path=outputs/instruction/instruct",
        texts=("system", "stop"),
    ),
    "classify": Verb(
        "llm.apps.classify",
        "name the class of each line with a trained classifier",
        'llm classify weights.path=outputs/classification/spam text="You have won a prize"',
        texts=("text",),
    ),
    "evaluate": Verb(
        "llm.apps.evaluate",
        "measure what a run has learned, and let a model judge its answers",
        "llm evaluate weights.path=outputs/instruction/instruct judge=openai judge.model=llama3.1",
    ),
    "compare": Verb(
        "llm.apps.compare",
        "put runs beside one another, in a table and a picture",
        "llm compare outputs/pretraining output=comparison",
        folders="runs",
    ),
    "export": Verb(
        "llm.apps.export",
        "write a model as a folder that Hugging Face's library reads",
        "llm export weights.path=outputs/pretraining/my_gpt2 output=my_gpt2",
    ),
}

USAGE = """\
llm VERB [key=value …]

{verbs}

  llm VERB --help                   the groups, options and values of a verb
  llm VERB … --cfg job              the composed configuration; nothing is run
  llm VERB … -m key=a,b             a run for each value
  llm VERB … --config-dir FOLDER    with configs of your own
  eval "$(llm -sc install=bash)"    tab completion; zsh=… and fish=… likewise
  llm --version"""


def main() -> None:
    """Run the command line; a wrong command or configuration ends with status 2."""
    console.use_utf8()
    console.replace_what_cannot_be_printed()
    try:
        answer(sys.argv[1:] or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        fail(f"stopped by {str(stop) or 'SIGINT'}", signals.status_of(signals.number_of(stop)))
    except BrokenPipeError:  # llm --help | head
        console.stop_printing()


def answer(line: Sequence[str]) -> None:
    """Do what a command line asks for."""
    command, *words = line
    require_text(line)
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(f"llm {__version__}")
    elif command in ("-sc", "--shell-completion"):
        complete(words)
    elif command in VERBS:
        with stoppable() if VERBS[command].is_heavy else contextlib.nullcontext():
            run(command, words)
    else:
        from llm.config.errors import suggestion

        fail(f"llm {command}: no such verb; {suggestion(command, VERBS)}")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let whatever asks a run to stop be told with what became of it, also before and after it trains.

    Raises:
        Stopped: outside of training, where nothing of the run was changed.
    """
    with signals.heard(signals.stop):
        try:
            yield
        except KeyboardInterrupt as stop:
            how = f"{str(stop) or 'SIGINT'} before training; the run is as it was"
            raise signals.Stopped(signals.number_of(stop), how) from None


def require_text(words: Sequence[str]) -> None:
    """Refuse a word of the command line whose bytes are not UTF-8: no file could hold it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            fail(f"{shown}: contains bytes that are not UTF-8 text; write it in UTF-8")


def usage() -> str:
    """What `llm --help` prints: each verb with an example."""
    verbs = (f"  {name:10s}{verb.help}\n{'':12s}{verb.example}" for name, verb in VERBS.items())
    return USAGE.format(verbs="\n".join(verbs))


def run(name: str, words: Sequence[str]) -> None:
    """Compose and check what is asked for, all of it, and only then let Hydra start it."""
    from hydra._internal.utils import get_args_parser

    from llm.config.composition import compose, open_loader, quoted
    from llm.config.errors import UserError

    verb = VERBS[name]
    texts = verb.texts if "-m" in words or "--multirun" in words else (*verb.texts, *PATHS)
    if verb.folders:
        words = gathered(words, verb.folders)
    # Overrides last: the parser of the flags takes no flag between two of them.
    words = sorted((as_text(word, texts) for word in words), key=is_override)
    sys.argv = ["llm", *words]
    args = get_args_parser().parse_args(words)
    if args.help:
        sys.argv += ["hydra/help=verb", f"hydra.help.header={quoted(header(name))}"]
    try:
        loader = open_loader(verb.module, args.config_path or CONF, config_dir(args.config_dir))
        module = importlib.import_module(verb.module)
        if args.cfg or args.help or args.info:
            compose(loader, args.config_name or name, args.overrides)
        elif not (args.shell_completion or args.hydra_help):
            begin(name, args, loader)
            return
        start(module.main, name, args.multirun)
    except UserError as error:
        fail(str(error), error.status)


def begin(name: str, args: Any, loader: Any) -> None:
    """Check every point that is asked for; then run it, or a sweep of them, or tell what they would cost."""
    from llm.config.composition import check_points, is_multirun, point

    verb, config_name = VERBS[name], args.config_name or name
    is_sweep = args.multirun or (verb.is_heavy and is_multirun(loader, config_name, args.overrides))
    points = check_points(loader, config_name, args.overrides, is_sweep)
    asks = points and (points[0].config.get("check") or points[0].config.get("match"))
    if not (verb.is_heavy and (is_sweep or asks)):
        return start(importlib.import_module(verb.module).main, name, is_sweep)

    from llm.apps import sweep

    points = sweep.adjusted(points, functools.partial(point, loader, config_name))
    if asks and points[0].config.check:
        from llm.apps.checking import show

        return show(points)
    start_jobs = functools.partial(start_sweep, sweep.job, name)
    sys.exit(sweep.launch(name, args.overrides, points, options(args), start_jobs))


def gathered(words: Sequence[str], key: str) -> list[str]:
    """A command line whose folders have become one override of `key`.

    A folder is what sets no key, or is there: names of runs have equals signs in them.
    """
    from hydra._internal.utils import get_args_parser

    from llm.config.composition import quoted

    positional = get_args_parser().parse_known_intermixed_args(words)[0].overrides
    folders = [word for word in positional if "=" not in word or os.path.isdir(word)]  # noqa: PTH112
    others = [word for word in words if word not in folders]
    return [*others, f"{key}=[{','.join(map(quoted, folders))}]"] if folders else others


def is_override(word: str) -> bool:
    """Whether a word of the command line sets or deletes a key, and is no flag or a flag's value."""
    return word.startswith(("+", "~")) or ("=" in word and not word.startswith("-"))


def options(args: Any) -> list[str]:
    """The flags of a command line that each of its jobs needs as well."""
    flags = {"--config-dir": config_dir(args.config_dir), "--config-name": args.config_name}
    return [word for flag, value in flags.items() if value for word in (flag, value)]


def start(main: Callable[..., Any], name: str, multirun: bool) -> None:
    """Let Hydra compose again and call the app.

    Hydra reports an exception of a single job in a line of its own before it raises it again; that of a
    mistake is ours to report, so it passes Hydra by, as does that nobody reads the output any more.
    """
    from llm.config.errors import UserError

    task = inspect.unwrap(main)

    @functools.wraps(task)
    def job(config: Any) -> Any:
        try:
            return task(config)
        except UserError as error:
            if multirun:  # the other jobs still want to run
                raise
            return fail(str(error), error.status)
        except BrokenPipeError:
            return console.stop_printing()

    let_hydra_call(job, name)


def start_sweep(job: Callable[..., Any], name: str, words: Sequence[str]) -> None:
    """Let Hydra call `job` for each point of a sweep, with some words more than were typed."""
    sys.argv += [*words, "hydra.mode=MULTIRUN"]
    let_hydra_call(job, name)


def let_hydra_call(job: Callable[..., Any], name: str) -> None:
    """Hand the command line to Hydra, which composes the configuration of this name for `job`."""
    import hydra

    # With this set Hydra raises what a crashed job raised, whole, instead of a shortened text.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    hydra.main(version_base="1.3", config_path=CONF, config_name=name)(job)()


def header(name: str) -> str:
    """The head of a verb's `--help`."""
    verb = VERBS[name]
    return f"llm {name}: {verb.help}\n\n    {verb.example}"


def config_dir(folder: str | None) -> str | None:
    """The user's folder of configs as an absolute path.

    Raises:
        ConfigError: there is no such folder.
    """
    from llm.config.errors import ConfigError

    if folder is not None and not os.path.isdir(folder):  # noqa: PTH112
        raise ConfigError(
            f"--config-dir {folder}: no such folder; name one that holds your configs"
        )
    return folder and os.path.abspath(folder)  # noqa: PTH100


def as_text(word: str, keys: Sequence[str]) -> str:
    """A command-line word whose value, if its key is among `keys`, is quoted for Hydra's grammar.

    What is quoted already stays, and so does a list of values.
    """
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in keys or _is_quoted(value) or _is_list(value):
        return word
    from llm.config.composition import quoted

    return f"{key}={quoted(value)}"


def _is_quoted(value: str) -> bool:
    return re.fullmatch(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", value, re.DOTALL) is not None


def _is_list(value: str) -> bool:
    if not (value.startswith("[") and value.endswith("]")):
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return isinstance(OverridesParser.create().parse_override(f"x={value}").value(), list)
    except HydraException:
        return False


def complete(words: Sequence[str]) -> None:
    """Serve a shell's completion: Hydra's own, which knows of no verbs, behind the verb.

    The shell calls `llm -sc query=bash` with the line typed so far in COMP_LINE.
    """
    verb = next(iter(VERBS))
    if words and words[0].startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        program, *typed = line.split(maxsplit=2)
        if len(typed) + line.endswith(" ") < 2:
            print(" ".join(name for name in VERBS if name.startswith("".join(typed))))
            return
        verb, *rest = typed
        os.environ["COMP_LINE"] = " ".join([program, *rest]) + ("" if rest else " ")
        if verb not in VERBS:
            return
        # Half a line is often no line yet: then there is nothing to offer, and nothing to say.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception, SystemExit):
            run(verb, ["-sc", *words])
        return
    run(verb, ["-sc", *words])


def fail(message: str, status: int = 2) -> None:
    """Print what is wrong and leave."""
    print(console.printable(message), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
