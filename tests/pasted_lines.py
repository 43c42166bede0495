"""Commands that a command prints, run by a shell."""

import subprocess


def pasted(line: str) -> list[str]:
    """Return the words that a program called `llm` receives from a line in a shell."""
    shown = "llm() { printf '%s\\0' \"$@\"; }; " + line
    out = subprocess.run(["bash", "-c", shown], capture_output=True, check=True).stdout
    return out.decode("utf-8", "surrogateescape").split("\0")[:-1]
