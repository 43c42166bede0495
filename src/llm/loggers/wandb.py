"""The logger of runs on Weights & Biases: offline, unless the user chose to upload."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from llm.comparison.result import read_metrics
from llm.files import read_utf8, write_text
from llm.loggers.wandb_retry import WRITE_INTERVAL, Mode, ResilientRun
from llm.runs import Run

MODES: tuple[Mode, ...] = ("online", "offline", "disabled")
LONGEST_TAG = 64  # W&B rejects longer ones
# Groups of options that do not describe the model or its training.
UNTAGGED = ("callbacks", "experiment", "logger", "sweep")
# Possible artifacts at the end of a run: W&B's type and the file.
PARTS: dict[str, tuple[str, Callable[[Run], Path]]] = {
    "picture": ("picture", lambda run: run.picture),
    "checkpoint": ("model", lambda run: run.best),
}


def wandb_logger(
    directory: str,
    name: str,
    *,
    project: str = "llm",
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: str | None = None,
    upload: list[str] | None = None,
    patience: float = 60.0,
) -> "WandbLogger":
    """Return a logger with one run on W&B per run directory, even if that is resumed.

    Nothing is uploaded unless the user chose it: with mode=online, WANDB_MODE=online, or as the agent of a W&B sweep;
    setting WANDB_API_KEY alone does not turn uploading on. Code, git, console, packages, hardware and host are sent
    only if W&B's own variable for it is set (see `llm.loggers.wandb_retry`).

    Args:
        directory: the run directory; W&B's files go to its folder `wandb`.
        name: name of the run.
        project: project of the run.
        entity: user or team; null takes the account's default.
        group: name of a group of runs; null takes the name of the sweep.
        tags: words to filter by; null takes the chosen options, such as `model=gpt2`.
        mode: `online`, `offline` or `disabled`; null takes WANDB_MODE, or else `online` under an agent of a W&B
            sweep and `offline` otherwise.
        upload: files to upload when the run ends: `picture`, `checkpoint` (the best).
        patience: seconds to wait at the end for the upload; large files need more.

    Raises:
        ValueError: `mode` or `upload` is unknown, `patience` is not positive, or a tag is too long.
    """
    for part in upload or ():
        if part not in PARTS:
            raise ValueError(f"upload={part}: is unknown; choose among {', '.join(PARTS)}")
    if patience <= 0:
        raise ValueError(f"patience={patience}: is not positive; use seconds, more than 0")
    long = next((tag for tag in tags or [] if len(tag) > LONGEST_TAG), None)
    if long:
        raise ValueError(
            f"tags: {long!r} is longer than {LONGEST_TAG} characters; use a shorter tag"
        )
    run = Run(Path(directory))
    identity = {
        "id": _id(run, project),
        "name": name,
        "project": project,
        "entity": entity,
        "group": group or run.record.get("sweep"),
        "job_type": run.record.get("task"),
        "tags": tags if tags is not None else _tags(run.record.get("choices", {})),
    }
    service = ResilientRun(run.path, _mode(mode), patience=patience, identity=identity)
    return WandbLogger(run, service, upload=upload or ())


def _mode(requested: str | None) -> Mode:
    is_agent = "WANDB_SWEEP_ID" in os.environ  # its server waits for the run's metrics
    mode = requested or os.environ.get("WANDB_MODE") or ("online" if is_agent else "offline")
    if mode not in MODES:
        raise ValueError(f"mode={mode}: is unknown; choose one of {', '.join(MODES)}")
    return mode


def _id(run: Run, project: str) -> str:
    """Return the id of a run: constant for one run directory until it is trained from scratch again.

    The agent of a W&B sweep sets an id, unless it runs one of our sweeps, whose runs each get their own.
    """
    is_one = "WANDB_SWEEP_ID" in os.environ and not os.environ.get("LLM_SWEEP")
    if is_one and (given := os.environ.get("WANDB_RUN_ID")):
        return given
    what = (project, str(run.path.resolve()), run.record.get("started", ""))
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:12]


def _tags(choices: Mapping[str, str | None]) -> list[str]:
    words = (
        f"{group.partition('@')[0]}={option}"
        for group, option in choices.items()
        if option and group.split("/")[0] not in UNTAGGED
    )
    return [word[:LONGEST_TAG] for word in words]


class _Row(NamedTuple):
    step: int
    begun: float
    metrics: dict[str, Any]


class WandbLogger(Logger):
    """A logger of metrics by optimizer step, configuration, samples and files of a run on W&B.

    A run that is resumed after a crash repeats the steps since its checkpoint. Online, W&B drops the repeated rows.
    Offline, each resume writes a folder of its own (`offline-run-…`). The first step whose row may be incomplete in all
    of them is stored beside them, and earlier rows are skipped.

    Lightning's own logger ends the run with the process, numbers the rows of each offline folder from 0, and fails
    when W&B does.

    Args:
        run: the run directory.
        service: the run on W&B.
        upload: names of `PARTS`.
    """

    def __init__(self, run: Run, service: ResilientRun, *, upload: Sequence[str] = ()) -> None:
        super().__init__()
        self.run = run
        self.service = service
        self.upload = upload
        self._unwritten: deque[_Row] = deque()
        self._first = 0

    @property
    def name(self) -> str:
        """Return the project."""
        return self.service.identity["project"]

    @property
    def version(self) -> str:
        """Return the id of the run on W&B."""
        return self.service.identity["id"]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the `wandb.Run`; None before it opens and after W&B was given up."""
        return self.service.run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Open the run, with its resolved configuration.

        Raises:
            ValueError: W&B rejects the user's settings: there is no API key, or a setting is wrong.
        """
        self.service.identity["config"] = params
        if self._first_step_file.is_file():
            known = read_utf8(self._first_step_file)
            # If the file is damaged, all rows are logged again.
            self._first = int(known) if known.isdecimal() else 0
        self.service.open()
        for row in read_metrics(self.run.metrics):  # a killed process may not have logged all
            step = int(row.pop("step"))
            if step >= self._first:
                self.log_metrics(row, step)
        if self.service.run is not None and self.service.mode == "online":
            print(f"W&B       {self.service.run.url}", flush=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a step; W&B stores it when the next row begins, or at the end."""
        step = self._first if step is None else step
        if not self._is_logged(step):
            self._remember(step, metrics)
            self._do(lambda run: run.log(dict(metrics), step=step))

    @rank_zero_only
    def log_texts(self, name: str, rows: Sequence[tuple[int, str]], *, step: int) -> None:
        """Log all texts so far as one table: W&B's own growing tables start again in each offline folder.

        Args:
            name: name of the table.
            rows: step and text of each.
            step: step of the newest row.
        """
        data = [list(row) for row in rows]

        def log_table(run: Any) -> None:  # a new table, because each belongs to one W&B run
            run.log({name: self.service.wandb.Table(["step", "text"], data)}, step=step)

        if not self._is_logged(step):
            self._do(log_table)

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the run: log its best loss, files and exit code, and print the command that uploads it.

        Args:
            exit_code: 0 after a whole run, 130 after an interruption, 1 after an error.
        """
        # The minimum over all resumes: W&B's own would be that of one offline folder.
        losses = [row["val/loss"] for row in read_metrics(self.run.metrics) if "val/loss" in row]
        if losses:
            self._do(lambda run: run.summary.update({"best/val/loss": min(losses)}))
        for part in self.upload:
            self._log_file(part)
        self.service.finish(exit_code, self._log_again)
        if self._unwritten:
            self._store_first(self._unwritten[-1].step + 1)
        if self.service.sync_command:
            print(f"W&B       stored locally; to send it: {self.service.sync_command}", flush=True)

    def _log_again(self, run: Any) -> None:
        for row in self._unwritten:
            run.log(row.metrics, step=row.step)

    def _do(self, act: Callable[[Any], object]) -> None:
        self.service.do(act, self._log_again)
        oldest = time.monotonic() - 2 * WRITE_INTERVAL
        while len(self._unwritten) > 1 and self._unwritten[1].begun < oldest:
            self._unwritten.popleft()

    def _log_file(self, part: str) -> None:
        """Log a file of the run, or the files of a sharded checkpoint, as an artifact, if it exists."""
        kind, locate = PARTS[part]
        path = locate(self.run)
        if path.exists() and self.service.run is not None:
            artifact = self.service.wandb.Artifact(f"{part}-{self.version}", type=kind)
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                artifact.add_file(str(file), str(file.relative_to(path.parent)))
            self._do(lambda run: run.log_artifact(artifact))

    def _is_logged(self, step: int) -> bool:
        """Return whether an offline folder has the whole row of this step."""
        return step < self._first and self.service.mode == "offline"

    def _remember(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep a row until W&B has written it, some time after the next row begins."""
        if not self._unwritten or step != self._unwritten[-1].step:
            self._unwritten.append(_Row(step, time.monotonic(), {}))
            self._store_first(step)
        self._unwritten[-1].metrics.update(metrics)

    @property
    def _first_step_file(self) -> Path:
        return self.run.path / "wandb" / f"{self.version}.step"

    def _store_first(self, first: int) -> None:
        """Store that the rows before this step are complete."""
        if first > self._first:
            self._first = first
            self._first_step_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._first_step_file, str(first))
