"""Commands that a command prints, run by a shell."""

import subprocess


def pasted(line: str) -> list[str]:
    """Return the arguments that a shell passes to `llm` for a line."""
    shown = "llm() { printf '%s\\0' \"$@\"; }; " + line
    out = subprocess.run(["bash", "-c", shown], capture_output=True, check=True).stdout
    return out.decode("utf-8", "surrogateescape").split("\0")[:-1]
