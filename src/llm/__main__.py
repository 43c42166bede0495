"""`llm COMMAND …`: the command line.

Heavy imports wait until a command runs, so that help and completion are fast.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence

from llm import __version__, signals
from llm.commands import COMMANDS
from llm.terminal import console

USAGE = """\
llm COMMAND [key=value …]

{commands}

  llm COMMAND --help                   groups, options and values of a command
  llm COMMAND … --cfg job              print the composed configuration without running it
  llm COMMAND … -m key=a,b             run a sweep: one run for each value
  llm COMMAND … --config-dir FOLDER    use your own configs too
  eval "$(llm -sc install=bash)"       tab completion; also install=zsh and install=fish
  llm --version"""


def main() -> None:
    """Run the command line; exit with status 2 if a command or a configuration is wrong."""
    console.use_utf8()
    console.replace_unprintable()
    console.shorten_warnings()
    try:
        run_line(sys.argv[1:] or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        fail(f"stopped by {str(stop) or 'SIGINT'}", signals.status_of(signals.number_of(stop)))
    except BrokenPipeError:  # llm --help | head
        console.stop_printing()


def run_line(line: Sequence[str]) -> None:
    """Run the command that a line names, or print the help, the version or completions."""
    name, *words = line
    require_text(line)
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"llm {__version__}")
    elif name in ("-sc", "--shell-completion"):
        complete_line(words)
    elif name in COMMANDS:
        with handle_early_stop() if COMMANDS[name].is_heavy else contextlib.nullcontext():
            run(name, words)
    else:
        # Imports difflib, which takes start-up time.
        from llm.config.errors import suggestion

        fail(f"llm {name}: no such command; {suggestion(name, COMMANDS)}")


@contextlib.contextmanager
def handle_early_stop() -> Iterator[None]:
    """Report that the run is unchanged if a signal stops the command outside of training.

    Raises:
        Stopped: a signal stopped the command.
    """
    with signals.received(signals.stop):
        try:
            yield
        except BaseException as error:
            if (stop := signals.find_stop(error)) is None:
                raise
            how = f"{str(stop) or 'SIGINT'} before training; the run is unchanged"
            raise signals.Stopped(signals.number_of(stop), how) from None


def require_text(words: Sequence[str]) -> None:
    """Refuse a word that is not UTF-8, because no config file could store it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            fail(f"{shown}: contains bytes that are not UTF-8 text; write it in UTF-8")


def usage() -> str:
    """Return the text of `llm --help`: each command with an example."""
    commands = (
        f"  {name:10s}{info.help}\n{'':12s}{info.example}" for name, info in COMMANDS.items()
    )
    return USAGE.format(commands="\n".join(commands))


def run(name: str, words: Sequence[str]) -> None:
    """Run a command, or show its configuration. A UserError is printed as one line."""
    # These import Hydra, which takes half a second; `llm --help` does not need it.
    from llm.config.errors import UserError
    from llm.config.os_errors import explain_os_errors
    from llm.launch.start import start, start_job

    try:
        with explain_os_errors():
            if words[:1] == ["--job"]:
                start_job(name, words[1:])
            else:
                start(name, words, COMMANDS[name])
    except UserError as error:
        fail(str(error), error.status)


def complete_line(words: Sequence[str]) -> None:
    """Complete a command line for a shell.

    The shell calls `llm -sc query=bash` with the typed line in COMP_LINE. The name of the command is completed here,
    and removed before Hydra completes the rest.
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
        # An incomplete line is often not valid, so its errors are not shown.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception, SystemExit):
            run(command, ["-sc", *words])
        return
    run(command, ["-sc", *words])


def fail(message: str, status: int = 2) -> None:
    """Print an error and exit."""
    print(console.printable(message), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
