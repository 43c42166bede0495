"""Replace the process of each sweep job by a script of the test, with any launcher."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from llm.launch import job_file, sweep_job

SCRIPT = "LLM_TEST_JOB"
real = sweep_job.job


def job(config):
    """Run the job as `sweep_job.job` does, but with the script as its Python interpreter."""
    job_file.sys = SimpleNamespace(executable=os.environ[SCRIPT])
    return real(config)


def script(folder: Path, code: str) -> dict[str, str]:
    """Write a script in bash, which starts faster than Python; return the environment variables that select it."""
    file = folder / "job"
    file.write_text(f"#!/bin/bash\n{code}\n")
    file.chmod(0o755)
    return {SCRIPT: str(file), "PYTHONPATH": str(Path(__file__).parent)}


def main() -> None:
    """Run `llm WORDS`, as `python -m stand_in WORDS`, with the script in place of each job."""
    from llm.__main__ import main

    sweep_job.job = job
    sys.argv[0] = "llm"
    main()


if __name__ == "__main__":
    import stand_in  # by its import name, so that other processes can unpickle it

    stand_in.main()
