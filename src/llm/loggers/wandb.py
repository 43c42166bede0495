"""Weights & Biases: what a run is called there, and what of it is sent. Offline unless the user chose to send."""

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

from llm.comparison.result import read_metric_rows
from llm.files import read_utf8, write_text
from llm.loggers.wandb_retry import WRITING, Mode, ResilientRun
from llm.runs import Run

MODES: tuple[Mode, ...] = ("online", "offline", "disabled")
LONGEST_TAG = 64  # W&B refuses longer ones
UNTAGGED = ("callbacks", "experiment", "logger", "sweep")  # groups that leave a run what it is
# What may be sent as an artifact when a run ends: W&B's type of it, and the file.
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
    """A logger whose run on W&B is that of the run directory, however often it is resumed.

    Nothing is sent unless the user chose it: with mode=online, WANDB_MODE=online, or as the agent of a
    W&B sweep; a key alone is no choice. Code, git, console, packages, hardware and host stay
    here as well, each unless W&B's own variable for it is set (see `llm.loggers.wandb_retry`).

    Args:
        directory: the run directory; W&B's files go to its folder `wandb`.
        name: of the run.
        project: of the run.
        entity: user or team; null takes the account's default.
        group: runs that belong together; null takes the name of the sweep.
        tags: words to filter by; null takes the groups chosen, `model=gpt2`.
        mode: `online`, `offline` or `disabled`; null takes WANDB_MODE, or else is offline except
            under an agent of a W&B sweep.
        upload: what to keep on W&B when the run ends: `picture`, `checkpoint` (the best).
        patience: seconds to wait at the end for what is not sent yet; large uploads need more.

    Raises:
        ValueError: `mode` or `upload` names something else, `patience` is not positive, or a tag is too long.
    """
    parts = _known(upload or [])
    if patience <= 0:
        raise ValueError(f"patience={patience}: give seconds, more than 0")
    long = next((tag for tag in tags or [] if len(tag) > LONGEST_TAG), None)
    if long:
        raise ValueError(f"tags: {long!r} is longer than {LONGEST_TAG} characters")
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
    return WandbLogger(
        run, ResilientRun(run.path, _mode(mode), patience=patience, identity=identity), upload=parts
    )


def _known(upload: Sequence[str]) -> list[str]:
    for part in upload:
        if part not in PARTS:
            raise ValueError(f"upload={part}: choose among {', '.join(PARTS)}")
    return list(upload)


def _mode(requested: str | None) -> Mode:
    is_agent = "WANDB_SWEEP_ID" in os.environ  # its server waits for what the run finds
    mode = requested or os.environ.get("WANDB_MODE") or ("online" if is_agent else "offline")
    if mode not in MODES:
        raise ValueError(f"mode={mode}: choose one of {', '.join(MODES)}")
    return mode


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if value and name != "step"}


def _id(run: Run, project: str) -> str:
    """The same for the same run in the same place; another for a directory elsewhere, or begun anew.

    The agent of a W&B sweep gives the id by which its server knows the run. Where that is a sweep of
    ours, it has many, and each its own id.
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
    """Metrics by optimizer step, configuration, samples and files of a run, on W&B.

    The step of W&B is the optimizer step. W&B drops rows whose step is not beyond its last, and a run
    that goes on after a crash trains the steps since its checkpoint again: online that is just right.
    Offline nobody drops them: the pieces would hold these steps twice. So the step that follows the
    complete rows of the pieces is written down beside them, and rows before it are left out.

    Lightning's own logger opens a run that ends with the process, counts rows as W&B's steps, which
    begin at 0 again in each offline piece, and does not outlive W&B.

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
        """The project."""
        return self.service.identity["project"]

    @property
    def version(self) -> str:
        """The id of the run on W&B."""
        return self.service.identity["id"]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`; None before its begin and where W&B was given up."""
        return self.service.run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Open the run, with its resolved configuration.

        Raises:
            ValueError: W&B refuses the user's own words: there is no key, or a setting is wrong.
        """
        self.service.identity["config"] = params
        if self._beginning.is_file():
            known = read_utf8(self._beginning)
            self._first = (
                int(known) if known.isdecimal() else 0
            )  # damaged: all rows are handed on again
        self.service.open()
        for row in self._rows():  # those that a process that was killed had no time to hand on
            if int(row["step"]) >= self._first:
                self.log_metrics(_numbers(row), int(row["step"]))
        if self.service.run is not None and self.service.mode == "online":
            print(f"W&B       {self.service.run.url}", flush=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a step; W&B keeps a row when that of a later step begins, or at the end."""
        step = self._first if step is None else step
        if not self._is_logged(step):
            self._remember(step, metrics)
            self._do(lambda run: run.log(dict(metrics), step=step))

    @rank_zero_only
    def log_texts(self, name: str, rows: Sequence[tuple[int, str]], *, step: int) -> None:
        """Show all texts so far as one table.

        The whole table each time: W&B shows the last one, and its own mode for tables that grow begins
        a new one with each offline piece.

        Args:
            name: of the table.
            rows: step and text, all since the run began.
            step: of the newest.
        """
        import wandb

        data: list[Any] = [list(row) for row in rows]
        if not self._is_logged(step):  # a table belongs to the run that it was made for
            self._do(lambda run: run.log({name: wandb.Table(["step", "text"], data)}, step=step))

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the run: its best loss, its files, its exit code, and a word on how to send it.

        Args:
            exit_code: 0 after a whole run, 130 after an interruption, 1 after an error.
        """
        losses = [float(row["val/loss"]) for row in self._rows() if row.get("val/loss")]
        if losses:
            self._do(lambda run: run.summary.update({"best/val/loss": min(losses)}))
        for part in self.upload:
            self._keep(part)
        self.service.finish(exit_code, self._log_again)
        if self._unwritten:
            self._note(self._unwritten[-1].step + 1)
        if self.service.sending:
            print(f"W&B       kept here; to send it: {self.service.sending}", flush=True)

    def _log_again(self, run: Any) -> None:
        for row in self._unwritten:
            run.log(row.metrics, step=row.step)

    def _do(self, act: Callable[[Any], object]) -> None:
        def anew(run: Any) -> None:
            self._log_again(run)
            act(run)

        self.service.do(act, anew)
        while (
            len(self._unwritten) > 1 and time.monotonic() - self._unwritten[1].begun > 2 * WRITING
        ):
            self._unwritten.popleft()

    def _rows(self) -> list[dict[str, str]]:
        """What all sittings measured: W&B's own minimum would be that of one offline piece."""
        return read_metric_rows(self.run.metrics) if self.run.metrics.is_file() else []

    def _keep(self, part: str) -> None:
        import wandb

        kind, locate = PARTS[part]
        place = locate(self.run)
        if place.exists():
            artifact = wandb.Artifact(f"{part}-{self.version}", type=kind)
            for file in sorted(place.iterdir()) if place.is_dir() else [place]:  # weights in parts
                artifact.add_file(str(file), str(file.relative_to(place.parent)))
            self._do(lambda run: run.log_artifact(artifact))

    def _is_logged(self, step: int) -> bool:
        """Whether an offline piece has the row of this step."""
        return step < self._first and self.service.mode == "offline"

    def _remember(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep a row until it is surely written: a while after that of a later step began."""
        if not self._unwritten or step != self._unwritten[-1].step:
            self._unwritten.append(_Row(step, time.monotonic(), {}))
            self._note(step)
        self._unwritten[-1].metrics.update(metrics)

    @property
    def _beginning(self) -> Path:
        return self.run.path / "wandb" / f"{self.version}.step"

    def _note(self, first: int) -> None:
        """Write down that the rows before this step are complete."""
        if first > self._first:
            self._first = first
            self._beginning.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._beginning, str(first))
