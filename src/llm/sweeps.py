"""A sweep on disk: the jobs that one command means, and what came of each.

    outputs/sweeps/NAME/
      sweep.json              the command, and for each job its overrides and its run's directory
      jobs/N.yaml             what the job of this number is, composed, for its process to read
      jobs/N.json             how it went: status, error, attempts
      jobs/N.log, jobs/N.err  what it printed
      settled.json            what was measured once for all jobs: the precision on a CPU
      table.csv, table.md, loss.png   the comparison, as of the job that ended last

The runs themselves stand where they always do; a sweep only points to them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm.config.errors import ConfigError, UserError
from llm.files import RESTORE, FileError, read_object, require_own, sweep_partials, write_json
from llm.runs import ClaimedRunError, Run, archive_folder, now

FILE = "sweep.json"
SETTLED = "settled.json"
FOLDER = "LLM_SWEEP_FOLDER"  # the variable that tells a job's process where its sweep is
# What of a run's record tells one training from another in its place.
TOLD = ("request", "ended")


class NoSweepError(ConfigError):
    """A folder holds no sweep."""


class RunningSweepError(UserError):
    """Jobs of another sweep run under the name of one that is to begin."""

    status = ClaimedRunError.status


@dataclass(frozen=True, kw_only=True)
class Job:
    """One point of a sweep.

    Args:
        sweep: the sweep's folder.
        number: its place in the sweep, from 0 on.
        overrides: the words that make it.
        directory: its run's.
        request: the fingerprint of what it asks for, the budget included.
        identity: what its run would be called in a comparison before there is one.
    """

    sweep: Path
    number: int
    overrides: tuple[str, ...]
    directory: Path
    request: str
    identity: Mapping[str, Any]

    def file(self, ending: str) -> Path:
        """One of the job's own files: `yaml`, `json`, `log` or `err`."""
        return self.sweep / "jobs" / f"{self.number}.{ending}"

    @property
    def outcome(self) -> dict[str, Any]:
        """How the newest attempt went: `status`, `error`, `attempts`; empty before the first.

        What stands under this number of another job, which the same sweep meant once, is no news of this one;
        nor is that a run was done which has been trained anew since.
        """
        file = self.file("json")
        outcome = read_object(file) if file.is_file() else {}
        is_ours = self._about().items() <= outcome.items()
        is_old = outcome.get("status") == "done" and outcome.get("run") != self._told()
        return outcome if is_ours and not is_old else {}

    def record(self, **entries: Any) -> None:
        """Add to the outcome, which is about the run as its record stands now."""
        write_plan(
            self.file("json"), self.outcome | entries | self._about() | {"run": self._told()}
        )

    def _about(self) -> dict[str, str]:
        """What an outcome is about; the directory relative to the sweep's, as in its plan."""
        directory = os.path.relpath(self.directory, self.sweep)
        return {"request": self.request, "directory": directory}

    def _told(self) -> dict[str, Any]:
        """What the run's record says that another training's would not."""
        record = Run(self.directory).record
        return {key: record.get(key) for key in TOLD}

    @property
    def run(self) -> Run:
        """The job's run; before there is one, or where it was refused, what is known of it.

        A run of another configuration in its place is not its own: its figures must not be taken for its.
        """
        run, outcome = Run(self.directory), self.outcome
        is_ours = self._asked_for(run)
        if is_ours and run.status == "done":
            return run
        if not is_ours:
            run = Run(self.sweep / "jobs" / self.directory.name)  # where nothing is
            run.record = {**self.identity, "status": "pending"}
        if outcome.get("status") == "failed":
            run.record |= {"status": "failed", "error": outcome["error"]}
        return run

    @property
    def is_done(self) -> bool:
        """Whether the run is there, done, and what this job asks for."""
        run = Run(self.directory)
        return run.status == "done" and self._asked_for(run)

    def _asked_for(self, run: Run) -> bool:
        """Whether a run is what this job means, or was found to do for it."""
        return run.record.get("request") == self.request or self.outcome.get("status") == "done"

    @contextmanager
    def claimed(self, *, blocking: bool = False) -> Iterator[bool]:
        """Hold the job for this process; False where another holds it, unless that is waited for."""
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
    """A sweep's folder.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def plan(self) -> dict[str, Any]:
        """What sweep.json says.

        Raises:
            NoSweepError: there is none.
        """
        file = self.path / FILE
        if not file.is_file():
            raise NoSweepError(
                f"{self.path}: is not the folder of a sweep (it has no {FILE}); name one"
            )
        require_own(self.path, "jobs")
        plan = read_object(file)
        if not (isinstance(plan.get("jobs"), list) and all(map(_is_entry, plan["jobs"]))):
            raise FileError(f"{file}: holds no list of jobs; {RESTORE}")
        return plan

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    @property
    def jobs(self) -> list[Job]:
        """All jobs that are known of; a sweeper that chooses as it goes adds to them."""
        return [self._job(entry) for entry in self.plan["jobs"]]

    @property
    def runs(self) -> list[Run]:
        """The runs of the jobs, pending and failed ones too."""
        return [job.run for job in self.jobs]

    def begin(self, jobs: Sequence[Mapping[str, Any]] | None, **entries: Any) -> Path | None:
        """Write what the sweep means, over what an earlier launch of the same line wrote.

        Args:
            jobs: all there will be, by number; None where a sweeper finds more, and what it found stays.
            entries: what else there is to say.

        Returns:
            Where another sweep is kept that stood here, one with jobs that these leave out.

        Raises:
            RunningSweepError: a sweep in which numbers mean other jobs than here is running.
        """
        with self._held():
            known = self.plan["jobs"] if (self.path / FILE).is_file() else []
            meant = known if jobs is None else jobs
            before = [job["directory"] for job in known]
            after = [job["directory"] for job in meant]
            if before != after[: len(before)]:
                self._require_idle()  # whoever runs it goes by the numbers of its jobs
            aside = None if set(before) <= set(after) else archive_folder(self.path)
            sweep_partials(self.path, self.path / "jobs")
            write_plan(
                self.path / FILE, {"name": self.name, "began": now(), **entries, "jobs": meant}
            )
        return aside

    def _require_idle(self) -> None:
        for job in self.jobs:
            with job.claimed() as is_free:
                if not is_free:
                    raise RunningSweepError(
                        f"{self.path}: another sweep is running under this name; wait for it, or choose another name="
                    )

    def add(self, **entry: Any) -> Job:
        """Put one more job into the plan, unless there is one for its directory; the number is the plan's."""
        with self._held():
            plan = self.plan
            places = {each["directory"]: each["number"] for each in plan["jobs"]}
            number = places.get(entry["directory"], len(plan["jobs"]))
            entry["number"] = number
            plan["jobs"][number : number + 1] = [entry]
            write_plan(self.path / FILE, plan)
        return self._job(entry)

    def settle(self, key: str, value: Any) -> Any:
        """Return the value that a job recorded under a key before; if none did, record this one and return it."""
        with self._held():
            file = self.path / SETTLED
            settled = read_object(file) if file.is_file() else {}
            if key not in settled:
                write_plan(file, settled | {key: value})
        return settled.get(key, value)

    def _held(self) -> FileLock:
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / f".{FILE}.lock")

    def entry(
        self,
        number: int,
        overrides: Sequence[str],
        *,
        directory: Path,
        request: str,
        identity: Mapping[str, Any],
    ) -> dict[str, Any]:
        """A job as sweep.json keeps it; its directory relative to the sweep's, so that outputs may move."""
        return {
            "number": number,
            "overrides": list(overrides),
            "directory": os.path.relpath(directory, self.path),
            "request": request,
            "identity": dict(identity),
        }

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
    """Whether an entry of a plan is a job: a stranger's number must not be the way to another folder."""
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


def write_plan(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content, indent=1)
