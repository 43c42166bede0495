"""Worker process that renders one chat template; it is run by path and never imported.

A published model's template is untrusted code. Jinja's sandbox blocks access to files and to Python's objects, but
not endless loops or texts, so this module limits memory, time and output, and `llm.data.examples.jinja_template`
kills it after a timeout.

The first line of the input is the template's source, each further line the values to render. Each gives one line of
output, `{"text": …}` or `{"error": …}`. All lines are JSON.
"""

import contextlib
import json
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**30  # bytes of address space
SECONDS = 10  # of CPU time for one text
CHARACTERS = 2**20  # of a text, in addition to four times the length of its values


class Generation(jinja2.ext.Extension):
    """The statement `{% generation %}`, which marks responses in some templates; it does not change the text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Any) -> Any:
        """Return the content of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Return a sandbox with the names and settings that Hugging Face's library gives to templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON without HTML's escapes; a template may pass the arguments by position."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def raise_exception(message: object) -> None:
    """Raise an error; a template calls this to reject messages."""
    raise jinja2.TemplateError(str(message))


def render_text(template: jinja2.Template, values: dict[str, Any], *, room: int) -> str:
    """Return the text, of at most `room` characters."""
    pieces: list[str] = []
    for piece in template.generate(**values):
        room -= len(piece)
        if room < 0:
            raise ValueError("it writes too much text")
        pieces.append(piece)
    return "".join(pieces)


def limit(seconds: int) -> None:
    """Limit memory, and CPU time from now on, and forbid writing files."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not every system has it

        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(used.ru_utime + used.ru_stime)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Reply to each line of the input."""
    template: jinja2.Template | None = None
    for line in sys.stdin:
        try:
            limit(SECONDS)
            if template is None:
                template = environment().from_string(json.loads(line))
                text = ""
            else:
                text = render_text(template, json.loads(line), room=CHARACTERS + 4 * len(line))
            reply = {"text": text}
        except MemoryError:
            reply = {"error": "it takes too much memory"}
        except Exception as error:  # a template may raise anything
            reply = {"error": str(error) or type(error).__name__}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
