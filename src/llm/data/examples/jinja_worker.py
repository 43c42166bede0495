"""Render one chat template in a process of its own: run by path, imported by nobody.

A published model's template is a program by a stranger. Jinja's sandbox keeps it from files and from Python's
objects, but not from loops without end or texts without bound, so limits of memory, time and output are
set here, and the process that asks for texts (`llm.data.examples.jinja_template`) ends this one when it is late.

The first line of the input holds the template's source, each further line the values to render it with; each
line is answered by one line, `{"text": …}` or `{"error": …}`, all of them JSON.
"""

import contextlib
import json
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**30  # bytes of addresses
SECONDS = 10  # of the processor, for one text
CHARACTERS = 2**20  # of a text, beyond four times what it is made of


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which some templates mark answers, changes no text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Any) -> Any:
        """Read on to the end of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """The names that Hugging Face's library gives to a template, in a sandbox as it sets up."""
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
    """What a template calls for messages that it cannot write."""
    raise jinja2.TemplateError(str(message))


def rendered(template: jinja2.Template, values: dict[str, Any], *, room: int) -> str:
    """The text, of at most so many characters."""
    pieces: list[str] = []
    for piece in template.generate(**values):
        room -= len(piece)
        if room < 0:
            raise ValueError("it writes without end")
        pieces.append(piece)
    return "".join(pieces)


def limit(seconds: int) -> None:
    """Bound memory and the processor's time from here on, and forbid to write files."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(used.ru_utime + used.ru_stime)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Answer line by line, until there is no more."""
    template: jinja2.Template | None = None
    for line in sys.stdin:
        try:
            limit(SECONDS)
            if template is None:
                template = environment().from_string(json.loads(line))
                text = ""
            else:
                text = rendered(template, json.loads(line), room=CHARACTERS + 4 * len(line))
            answer = {"text": text}
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except Exception as error:  # a template may raise anything
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
