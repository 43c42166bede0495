"""A sweep on disk: the jobs of one command, and the outcome of each.

    outputs/sweeps/NAME/
      sweep.json              the command, and for each job its overrides and the directory of its run
      jobs/N.yaml             the composed configuration of job N, for its process to read
      jobs/N.json             its outcome: status, error, attempts
      jobs/N.log, jobs/N.err  its output
      settled.json            values measured once for all jobs: the precision on a CPU
      table.csv, table.md, loss.png   the comparison, updated whenever a job ends

The runs are in their usual folders.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm.config.errors import ConfigError, UserError
from llm.files import RESTORE, FileError, delete_partials, read_object, require_own, write_json
from llm.runs import ClaimedRunError, Run, archive_folder, now

FILE = "sweep.json"
SETTLED = "settled.json"
FOLDER = "LLM_SWEEP_FOLDER"  # environment variable with the sweep's folder, for a job's process
# Entries of a run's record that change when the run is trained again.
TRAINING_KEYS = ("request", "ended")


class NoSweepError(ConfigError):
    """A folder is not the folder of a sweep."""


class RunningSweepError(UserError):
    """Jobs of another sweep with the same name are running."""

    status = ClaimedRunError.status


@dataclass(frozen=True, kw_only=True)
class Job:
    """One point of a sweep.

    Args:
        sweep: the sweep's folder.
        number: its index in the sweep, from 0.
        overrides: the overrides without Hydra's.
        directory: the directory of its run.
        request: the fingerprint of its configuration, with the budget.
        identity: metadata for comparisons before its run exists.
    """

    sweep: Path
    number: int
    overrides: tuple[str, ...]
    directory: Path
    request: str
    identity: Mapping[str, Any]

    @property
    def entry(self) -> dict[str, Any]:
        """The job as stored in sweep.json. Its directory is relative, so that outputs can be moved."""
        return {
            "number": self.number,
            "overrides": list(self.overrides),
            **self._about(),
            "identity": dict(self.identity),
        }

    def file(self, ending: str) -> Path:
        """Return the path of one of the job's files: `yaml`, `json`, `log` or `err`."""
        return self.sweep / "jobs" / f"{self.number}.{ending}"

    @property
    def outcome(self) -> dict[str, Any]:
        """The outcome of the newest attempt: `status`, `error`, `attempts`; empty before the first.

        The file of an earlier job with this number is ignored, and so is `done` if the run was trained again later.
        """
        file = self.file("json")
        outcome = read_object(file) if file.is_file() else {}
        is_ours = self._about().items() <= outcome.items()
        is_old = outcome.get("status") == "done" and outcome.get("run") != self._training()
        return outcome if is_ours and not is_old else {}

    def record(self, **entries: Any) -> None:
        """Add entries to the outcome, with the current state of the run's record."""
        self.file("json").parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self.file("json"), self.outcome | entries | self._about() | {"run": self._training()}
        )

    def _about(self) -> dict[str, str]:
        """Return what identifies the job; the directory is relative to the sweep's."""
        directory = os.path.relpath(self.directory, self.sweep)
        return {"request": self.request, "directory": directory}

    def _training(self) -> dict[str, Any]:
        """Return what identifies the training that the run's record describes."""
        record = Run(self.directory).record
        return {key: record.get(key) for key in TRAINING_KEYS}

    @property
    def run(self) -> Run:
        """The job's run. If there is none yet, or one with another configuration, a pending run with the metadata."""
        run, outcome = Run(self.directory), self.outcome
        is_ours = self._matches(run)
        if is_ours and run.status == "done":
            return run
        if not is_ours:
            run = Run(self.sweep / "jobs" / self.directory.name)  # a path that does not exist
            run.record = {**self.identity, "status": "pending"}
        if outcome.get("status") == "failed":
            run.record |= {"status": "failed", "error": outcome["error"]}
        return run

    @property
    def is_done(self) -> bool:
        """Whether the run is done and has the configuration of this job."""
        run = Run(self.directory)
        return run.status == "done" and self._matches(run)

    def _matches(self, run: Run) -> bool:
        """Return whether a run has the configuration of this job, or was accepted as its result before."""
        return run.record.get("request") == self.request or self.outcome.get("status") == "done"

    @contextmanager
    def claimed(self, *, blocking: bool = False) -> Iterator[bool]:
        """Hold the job within a block.

        Without `blocking`, do not wait for another process that holds it.

        Yields:
            Whether the job is held.
        """
        self.file("json").parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.file("lock"))
        try:
            lock.acquire(blocking=blocking)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder."""

    path: Path

    @property
    def plan(self) -> dict[str, Any]:
        """The content of sweep.json.

        Raises:
            NoSweepError: the file does not exist.
        """
        file = self.path / FILE
        if not file.is_file():
            raise NoSweepError(f"{self.path}: has no {FILE}; pass the folder of a sweep")
        require_own(self.path, "jobs")
        plan = read_object(file)
        if not (isinstance(plan.get("jobs"), list) and all(map(_is_entry, plan["jobs"]))):
            raise FileError(f"{file}: has no valid list of jobs; {RESTORE}")
        return plan

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    @property
    def jobs(self) -> list[Job]:
        """All jobs so far; a searching sweeper adds more."""
        return [self._job(entry) for entry in self.plan["jobs"]]

    @property
    def runs(self) -> list[Run]:
        """The runs of the jobs, including pending and failed ones."""
        return [job.run for job in self.jobs]

    def begin(self, jobs: Sequence[Job] | None, **entries: Any) -> Path | None:
        """Write the plan of the sweep, or replace that of the same command.

        Args:
            jobs: all jobs, by number; None for a searching sweeper, whose earlier jobs are kept.
            entries: further entries of the plan.

        Returns:
            The new path of an earlier sweep in this folder with other jobs; None if there was none.

        Raises:
            RunningSweepError: a sweep with other jobs under the same numbers is running.
        """
        with self._held():
            known = self.plan["jobs"] if (self.path / FILE).is_file() else []
            planned = known if jobs is None else [job.entry for job in jobs]
            before = [job["directory"] for job in known]
            after = [job["directory"] for job in planned]
            if before != after[: len(before)]:
                self._require_idle()  # a process that runs the sweep refers to jobs by number
            backup = None if set(before) <= set(after) else archive_folder(self.path)
            self.path.mkdir(exist_ok=True)
            delete_partials(self.path, self.path / "jobs")
            write_json(
                self.path / FILE, {"name": self.name, "began": now(), **entries, "jobs": planned}
            )
        return backup

    def _require_idle(self) -> None:
        for job in self.jobs:
            with job.claimed() as is_free:
                if not is_free:
                    raise RunningSweepError(
                        f"{self.path}: another sweep is running under this name; wait for it, or choose another name="
                    )

    def add(self, job: Job) -> Job:
        """Add a job to the plan, or replace the one with its directory, and return it with its number."""
        with self._held():
            plan = self.plan
            numbers = {each["directory"]: each["number"] for each in plan["jobs"]}
            number = numbers.get(job.entry["directory"], len(plan["jobs"]))
            job = replace(job, number=number)
            plan["jobs"][number : number + 1] = [job.entry]
            write_json(self.path / FILE, plan)
        return job

    def share_value(self, key: str, value: Any) -> Any:
        """Return the value that the first job recorded under a key; if there is none, record this one."""
        with self._held():
            file = self.path / SETTLED
            settled = read_object(file) if file.is_file() else {}
            if key not in settled:
                write_json(file, settled | {key: value})
        return settled.get(key, value)

    def _held(self) -> FileLock:
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / f".{FILE}.lock")

    def _job(self, entry: Mapping[str, Any]) -> Job:
        return Job(
            sweep=self.path,
            number=entry["number"],
            overrides=tuple(entry["overrides"]),
            directory=Path(os.path.normpath(self.path / entry["directory"])),
            request=entry["request"],
            identity=entry["identity"],
        )


def _is_entry(entry: Any) -> bool:
    """Return whether an entry of a plan is a valid job. A number that is a text could name a file in another folder."""
    if not isinstance(entry, dict):
        return False
    words = entry.get("overrides")
    return (
        type(entry.get("number")) is int
        and isinstance(words, list)
        and all(isinstance(word, str) for word in words)
        and all(isinstance(entry.get(key), str) for key in ("directory", "request"))
        and isinstance(entry.get("identity"), dict)
    )
