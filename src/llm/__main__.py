"""`llm COMMAND …`: the command line.

Nothing heavy is imported before there is something to run: help and completion answer at once.
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
        from llm.config.errors import suggestion  # imported to explain a mistake only

        fail(f"llm {name}: no such command; {suggestion(name, COMMANDS)}")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Say what became of the run when a signal stops it before or after it trains.

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
    """Return what `llm --help` prints: each command with an example."""
    commands = (
        f"  {name:10s}{info.help}\n{'':12s}{info.example}" for name, info in COMMANDS.items()
    )
    return USAGE.format(commands="\n".join(commands))


def run(name: str, words: Sequence[str]) -> None:
    """Run a command, or show its configuration; a mistake of the user's is one line."""
    # Hydra takes half a second to import, which `llm --help` does without.
    from llm.config.errors import UserError
    from llm.config.os_errors import explained
    from llm.launch.start import start, start_job

    try:
        with explained():
            if words[:1] == ["--job"]:
                start_job(words[1:])
            else:
                start(name, words, COMMANDS[name])
    except UserError as error:
        fail(str(error), error.status)


def complete_line(words: Sequence[str]) -> None:
    """Serve a shell's completion: Hydra's own, which has no commands, behind the command.

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
    """Print what is wrong and exit."""
    print(console.printable(message), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
