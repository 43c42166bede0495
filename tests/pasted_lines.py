"""Lines that a command prints, pasted into a shell."""

import subprocess


def pasted(line: str) -> list[str]:
    """The words that a program called `llm` is given by a line in a shell."""
    shown = "llm() { printf '%s\\0' \"$@\"; }; " + line
    out = subprocess.run(["bash", "-c", shown], capture_output=True, check=True).stdout
    return out.decode("utf-8", "surrogateescape").split("\0")[:-1]
