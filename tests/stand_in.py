"""Jobs of a sweep whose process is replaced by a script of the test, under every launcher."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from llm.launch import job_file, sweep_job

SCRIPT = "LLM_TEST_JOB"
real = sweep_job.job


def job(config):
    """Replace `sweep_job.job`."""
    job_file.sys = SimpleNamespace(executable=os.environ[SCRIPT])
    return real(config)


def script(folder: Path, code: str) -> dict[str, str]:
    """Write the script in bash, which starts at once; return its variables."""
    file = folder / "job"
    file.write_text(f"#!/bin/bash\n{code}\n")
    file.chmod(0o755)
    return {SCRIPT: str(file), "PYTHONPATH": str(Path(__file__).parent)}


def main() -> None:
    """`python -m stand_in WORDS` is `llm WORDS` with other processes for the jobs."""
    from llm.__main__ import main

    sweep_job.job = job
    sys.argv[0] = "llm"
    main()


if __name__ == "__main__":
    import stand_in  # by its import name, so that other processes can unpickle it

    stand_in.main()
