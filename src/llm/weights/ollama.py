"""The Modelfile with which Ollama runs a GGUF file."""

from collections.abc import Sequence
from pathlib import Path

from llm.config.errors import ConfigError
from llm.config.reading import FileError, read_utf8
from llm.files import write_text

SUFFIX = ".Modelfile"
COMMENT = "# Written by llm export, for ollama create NAME -f"


def modelfile(gguf: Path, *, context_length: int, stops: Sequence[str], is_chat: bool) -> str:
    """Return the content of the Modelfile.

    Args:
        gguf: the file, in the folder of the Modelfile.
        context_length: that of the model, in tokens.
        stops: names of the tokens that end a text.
        is_chat: whether the file has a chat template. Without one, Ollama must leave the prompt as it is.
    """
    lines = [COMMENT, f"FROM ./{gguf.name}", f"PARAMETER num_ctx {context_length}"]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    if not is_chat:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    return "\n".join(lines) + "\n"


def require_free_modelfile(gguf: Path, *, overwrite: bool) -> None:
    """Require that there is no Modelfile beside a file, or one of this file.

    Raises:
        ConfigError: there is another one.
    """
    path = gguf.with_suffix(SUFFIX)
    if overwrite or not path.exists():
        return
    try:
        lines = read_utf8(path).splitlines()
    except (FileError, OSError):
        lines = []
    if lines[:2] != [COMMENT, f"FROM ./{gguf.name}"]:
        raise ConfigError(
            f"output: {path} is of another model; name a file in another folder, or replace it with overwrite=true"
        )


def write_modelfile(gguf: Path, content: str) -> Path:
    """Write the Modelfile beside a file, and return its path."""
    path = gguf.with_suffix(SUFFIX)
    write_text(path, content)
    return path
