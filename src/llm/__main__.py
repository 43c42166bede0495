"""`llm COMMAND …`: compose a command's configuration and run it.

Nothing heavy is imported before there is something to run: help and completion answer at once.
"""

import contextlib
import functools
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm import __version__, signals
from llm.terminal import console

if TYPE_CHECKING:
    from llm.config.loader import Loader
    from llm.config.point import Point


class Command(NamedTuple):
    """What a command is; `llm/commands/NAME.py` runs it.

    Attributes:
        help: what it does, in a line.
        example: a command to start from.
        runs: tasks whose runs it reads; none for all.
        folders: the key that gathers words which are no overrides: folders.
        is_heavy: whether each point of a sweep (`-m`) deserves a process of its own.
    """

    help: str
    example: str
    runs: tuple[str, ...] = ()
    folders: str | None = None
    is_heavy: bool = False


CONVERSING = ("sft", "dpo", "grpo")
WRITING = ("pretraining", *CONVERSING)

COMMANDS = {
    "train": Command(
        "pretrain a model and watch it speak",
        "llm train model=llama size=micro trainer.max_steps=500",
        is_heavy=True,
    ),
    "plan": Command(
        "say what a run would take, on hardware that need not be here",
        "llm plan size=124m tokenizer=gpt2 trainer.max_tokens=2.5e9 hardware=fsdp hardware.devices=8 gpu=h100",
    ),
    "generate": Command(
        "let a trained model go on with a text",
        'llm generate weights.path=outputs/pretraining/python_docs prompt="The class statement"',
        runs=WRITING,
    ),
    "chat": Command(
        "talk with a model that was trained on conversations",
        "llm chat weights.path=outputs/sft/instruct",
        runs=CONVERSING,
    ),
    "classify": Command(
        "name the class of each line with a trained classifier",
        'llm classify weights.path=outputs/classification/spam text="You have won a prize"',
        runs=("classification",),
    ),
    "evaluate": Command(
        "measure what a run has learned, and let a model judge its answers",
        "llm evaluate weights.path=outputs/sft/instruct judge=openai judge.model=llama3.1",
    ),
    "compare": Command(
        "put runs beside one another, in a table and a picture",
        "llm compare outputs/pretraining output=comparison",
        folders="runs",
    ),
    "export": Command(
        "write a model as a folder that Hugging Face's library reads",
        "llm export weights.path=outputs/pretraining/my_gpt2 output=my_gpt2",
        runs=WRITING,
    ),
}

USAGE = """\
llm COMMAND [key=value …]

{commands}

  llm COMMAND --help                   the groups, options and values of a command
  llm COMMAND … --cfg job              the composed configuration; nothing is run
  llm COMMAND … -m key=a,b             a run for each value
  llm COMMAND … --config-dir FOLDER    with configs of your own
  eval "$(llm -sc install=bash)"       tab completion; zsh=… and fish=… likewise
  llm --version"""


def main() -> None:
    """Run the command line; a wrong command or configuration ends with status 2."""
    console.use_utf8()
    console.replace_what_cannot_be_printed()
    console.warn_in_one_line()
    try:
        run_line(sys.argv[1:] or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        fail(f"stopped by {str(stop) or 'SIGINT'}", signals.status_of(signals.number_of(stop)))
    except BrokenPipeError:  # llm --help | head
        console.stop_printing()


def run_line(line: Sequence[str]) -> None:
    """Do what a command line asks for."""
    name, *words = line
    require_text(line)
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"llm {__version__}")
    elif name in ("-sc", "--shell-completion"):
        complete_line(words)
    elif name in COMMANDS:
        with stoppable() if COMMANDS[name].is_heavy else contextlib.nullcontext():
            run(name, words)
    else:
        from llm.config.errors import suggestion

        fail(f"llm {name}: no such command; {suggestion(name, COMMANDS)}")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let whatever asks a run to stop be told with what became of it, also before and after it trains.

    Raises:
        Stopped: outside of training, where nothing of the run was changed.
    """
    with signals.received(signals.stop):
        try:
            yield
        except BaseException as error:
            if (stop := signals.stop_behind(error)) is None:
                raise
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
    """What `llm --help` prints: each command with an example."""
    commands = (
        f"  {name:10s}{command.help}\n{'':12s}{command.example}"
        for name, command in COMMANDS.items()
    )
    return USAGE.format(commands="\n".join(commands))


def run(name: str, words: Sequence[str]) -> None:
    """Compose and check what is asked for, all of it, and only then start it."""
    from llm.config.errors import UserError
    from llm.config.os_errors import explained

    try:
        with explained():
            if words[:1] == ["--job"]:
                sys.argv = ["llm", *words]
                start(name, read_job(words[1:]))
            else:
                run_composed(name, words)
    except UserError as error:
        fail(str(error), error.status)


def read_job(words: Sequence[str]) -> "Point":
    """The point that another process composed; the words are its file and the packages that it may trust."""
    from llm.config.errors import ConfigError
    from llm.launch.job_file import read_point

    if not words:
        raise ConfigError("--job: name the file of a job, as in a sweep's folder")
    return read_point(Path(words[0]), words[1:])


def run_composed(name: str, words: Sequence[str]) -> None:
    """Compose what is asked for, and show it or begin it."""
    from hydra._internal.utils import get_args_parser

    from llm.config.composition import compose
    from llm.config.loader import CONF, open_loader
    from llm.config.texts import as_text

    command, is_sweep = COMMANDS[name], "-m" in words or "--multirun" in words
    if command.folders:
        words = gathered(words, command.folders)
    # Overrides last: the parser of the flags takes no flag between two of them.
    words = sorted((as_text(word, is_sweep) for word in words), key=is_override)
    sys.argv = ["llm", *words]  # which the ranks of a run are started with
    parser = get_args_parser()
    args = parser.parse_args(words)
    if args.experimental_rerun is not None:  # which opens a pickle
        fail("--experimental-rerun: is not supported; the same command goes on with its run")
    loader = open_loader(args.config_path or CONF, config_dir(args.config_dir))
    if args.cfg or args.help or args.info:
        compose(loader, args.config_name or name, args.overrides)
    if args.cfg or args.help or args.info or args.shell_completion or args.hydra_help:
        # A folder of configs may be a stranger's, and Hydra prints the names in it as they are.
        with contextlib.redirect_stdout(console.Printable(sys.stdout)):  # pyright: ignore
            show_configuration(name, loader, parser, args)
    else:
        begin(name, args, loader)


def show_configuration(name: str, loader: "Loader", parser: Any, args: Any) -> None:
    """Let Hydra show a configuration, its help or what a shell may offer."""
    from hydra._internal.hydra import Hydra

    from llm.config.composition import chosen_options
    from llm.config.texts import quoted_text

    class Shown(Hydra):
        """Of all groups of configs, those from which this command chooses."""

        def list_all_config_groups(self, parent: str = "") -> Sequence[str]:
            roots = {group.partition("/")[0] for group in ("hydra", *chosen_options())}
            groups = super().list_all_config_groups(parent)
            return [group for group in groups if group.partition("/")[0] in roots]

    hydra, config_name = Shown("llm", loader), args.config_name or name
    if args.help:
        ours = ["hydra/help=command", f"hydra.help.header={quoted_text(header(name))}"]
        loader.own |= set(ours)
        args.overrides += ours
        hydra.app_help(config_name, parser, args)
    elif args.hydra_help:
        hydra.hydra_help(config_name, parser, args)
    elif args.cfg:
        hydra.show_cfg(config_name, args.overrides, args.cfg, args.package, args.resolve)
    elif args.info:
        hydra.show_info(args.info, config_name, args.overrides)
    else:
        hydra.shell_completion(config_name, args.overrides)


def begin(name: str, args: Any, loader: "Loader") -> None:
    """Check every point that is asked for; then run it, or a sweep of them, or tell what they would cost."""
    from llm.config.composition import check_points, is_multirun, point

    command, config_name = COMMANDS[name], args.config_name or name
    is_sweep = args.multirun or (
        command.is_heavy and is_multirun(loader, config_name, args.overrides)
    )
    first = functools.partial(require_places, command)
    points = check_points(loader, config_name, args.overrides, is_sweep, first=first)
    asks = points and (points[0].config.get("dry_run") or points[0].config.get("match"))
    flags = options(args)
    if not (is_sweep or (command.is_heavy and asks)):
        hydras = [
            word
            for word in args.overrides
            if word.startswith("hydra") and "hydra.mode=" not in word
        ]
        return start(name, points[0]._replace(options=[*flags, *hydras]))
    launch = functools.partial(let_hydra_launch, loader, config_name, args.overrides)
    if not command.is_heavy:
        return launch(functools.partial(start_point, name))

    from llm.launch import sweep_runner

    points = sweep_runner.adjusted(points, functools.partial(point, loader, config_name))
    if asks and points[0].config.dry_run:
        from llm.training import dry_run

        return dry_run.show_dry_run(points)
    sys.exit(
        sweep_runner.launch_sweep(
            name, args.overrides, points, flags, functools.partial(launch, sweep_runner.job)
        )
    )


def require_places(command: Command, config: Any) -> None:
    """Refuse paths of data and of runs that lead nowhere before anything heavy is imported.

    `dry_run=true` needs no data, and `llm plan` none either.

    Raises:
        ConfigError: a path leads to no file, folder or run.
    """
    from omegaconf import OmegaConf

    from llm.config.composition import chosen_options
    from llm.data.paths import require_paths
    from llm.runs import require_run

    for group, tasks in {"weights": command.runs, "reward": ("reward",)}.items():
        path = OmegaConf.select(config, f"{group}.path", throw_on_missing=False)
        if chosen_options().get(group) == "run" and isinstance(path, str) and path.strip():
            require_run(path, f"{group}.path", tasks)
    if command is COMMANDS["train"] and not config.get("dry_run"):
        require_paths(config.get("data") or {})
    require_paths(config, keys=("test_path", "file"), section="")


def start(name: str, point: "Point") -> None:
    """Run one point in this process."""
    # As Hydra's jobs have it; who has set up logging already keeps it.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    importlib.import_module(f"llm.commands.{name}").main(point)


def start_point(name: str, config: Any) -> None:
    """Run what Hydra's launcher has composed."""
    from llm.config.composition import launched

    start(name, launched(config))


def let_hydra_launch(
    loader: "Loader",
    config_name: str,
    overrides: Sequence[str],
    job: Callable[..., Any],
    own: Sequence[str] = (),
) -> None:
    """Let Hydra's sweeper and launcher call `job` for each point.

    Args:
        loader: composes.
        config_name: of the primary config.
        overrides: those of the command line.
        job: is given each point's configuration.
        own: words more than were typed.
    """
    from hydra._internal.hydra import Hydra

    # With this set Hydra raises what a crashed job raised, whole, instead of a shortened text.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    loader.own |= {*own}
    logging.getLogger("hydra").setLevel(logging.WARNING)  # what it launches shows by what it does
    Hydra("llm", loader).multirun(config_name, job, [*overrides, *own, "hydra.mode=MULTIRUN"])


def gathered(words: Sequence[str], key: str) -> list[str]:
    """A command line whose folders have become one override of `key`.

    A folder is what sets no key, or is there: names of runs have equals signs in them.
    """
    from hydra._internal.utils import get_args_parser

    from llm.config.texts import quoted_text

    positional = get_args_parser().parse_known_intermixed_args(words)[0].overrides
    folders = [word for word in positional if "=" not in word or os.path.isdir(word)]  # noqa: PTH112
    others = [word for word in words if word not in folders]
    return [*others, f"{key}=[{','.join(map(quoted_text, folders))}]"] if folders else others


def is_override(word: str) -> bool:
    """Whether a word of the command line sets or deletes a key, and is no flag or a flag's value."""
    return word.startswith(("+", "~")) or ("=" in word and not word.startswith("-"))


def options(args: Any) -> list[str]:
    """The flags of a command line that each of its jobs needs as well, as they were typed."""
    flags = {"--config-dir": args.config_dir, "--config-name": args.config_name}
    return [word for flag, value in flags.items() if value for word in (flag, value)]


def header(name: str) -> str:
    """The head of a command's `--help`."""
    command = COMMANDS[name]
    return f"llm {name}: {command.help}\n\n    {command.example}"


def config_dir(folder: str | None) -> str | None:
    """The user's folder of configs as an absolute path; a leading `~` is the home folder.

    Raises:
        ConfigError: there is no such folder.
    """
    from llm.config.errors import ConfigError

    if folder is None:
        return None
    place = os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111
    if not os.path.isdir(place):  # noqa: PTH112
        raise ConfigError(
            f"--config-dir {folder}: no such folder; name one that holds your configs"
        )
    return place


def complete_line(words: Sequence[str]) -> None:
    """Serve a shell's completion: Hydra's own, which knows of no commands, behind the command.

    The shell calls `llm -sc query=bash` with the line typed so far in COMP_LINE.
    """
    command = next(iter(COMMANDS))
    if words and words[0].startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        program, *typed = line.split(maxsplit=2)
        if len(typed) + line.endswith(" ") < 2:
            print(" ".join(name for name in COMMANDS if name.startswith("".join(typed))))
            return
        command, *rest = typed
        os.environ["COMP_LINE"] = " ".join([program, *rest]) + ("" if rest else " ")
        if command not in COMMANDS:
            return
        # Half a line is often no line yet: then there is nothing to offer, and nothing to say.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception, SystemExit):
            run(command, ["-sc", *words])
        return
    run(command, ["-sc", *words])


def fail(message: str, status: int = 2) -> None:
    """Print what is wrong and leave."""
    print(console.printable(message), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
