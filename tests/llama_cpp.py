"""llama.cpp itself, for tests of GGUF files.

LLM_TEST_LLAMA_CPP names a folder in which `npm install --ignore-scripts node-llama-cpp@3.22.1` was run.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

FOLDER = os.environ.get("LLM_TEST_LLAMA_CPP")
SCRIPT = Path(__file__).parent / "weights" / "llama_cpp.mjs"
needs_llama_cpp = pytest.mark.skipif(
    FOLDER is None, reason="LLM_TEST_LLAMA_CPP names no folder with llama.cpp"
)


def in_llama_cpp(file, cases, *, folder=FOLDER):
    """Return the tokens of each prompt and those that follow, as `llama_cpp.mjs` describes."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as given:
        json.dump(cases, given)
        given.flush()
        words = ["node", str(SCRIPT), str(folder), str(file), given.name]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
