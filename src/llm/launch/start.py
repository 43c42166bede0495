"""From a parsed command line to what runs: one command in this process, or a sweep of them."""

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from llm.config.check import check
from llm.config.command_info import CommandInfo
from llm.config.command_line import CommandLine, config_dir, parse
from llm.config.composed import Composed
from llm.config.composition import (
    check_composed,
    check_points,
    composed,
    fixed,
    is_multirun,
    launched,
    load_tree,
    sweep_jobs,
)
from llm.config.errors import ConfigError
from llm.config.hydra_section import require_obeyed
from llm.config.inspection import CommandView
from llm.config.loader import CONF, Loader, open_loader
from llm.data.paths import require_paths
from llm.launch.hydra_launch import launch
from llm.launch.job_file import read_composed
from llm.runs import require_run


def start_job(words: Sequence[str]) -> None:
    """Run what another process has composed; nothing is composed here.

    Args:
        words: the file of the job, and the packages that it may trust.

    Raises:
        ConfigError: the file is not a job's, or what it says is wrong.
    """
    if not words:
        raise ConfigError("--job: name the file of a job, as in a sweep's folder")
    run_checked(check(read_composed(Path(words[0]), words[1:])))


def start(name: str, words: Sequence[str], info: CommandInfo) -> None:
    """Compose and check everything that is asked for, and only then run it; or show it.

    Args:
        name: the command.
        words: what was typed behind it.
        info: about the command.

    Raises:
        ConfigError: with all that is wrong.
        SystemExit: with the status of a sweep.
    """
    line = parse(name, words, folders=info.folders)
    loader = open_loader(line.args.config_path or CONF, config_dir(line.args.config_dir))
    if line.shows:
        header = f"llm {name}: {info.help}\n\n    {info.example}"
        CommandView(loader, line).show(header)
        return
    is_sweep = line.is_sweep
    try:
        tree = load_tree(loader, line.config_name, line.overrides, is_sweep=is_sweep)
    except ConfigError:  # perhaps of values that a saved sweep takes without -m
        if is_sweep or not is_multirun(loader, line.config_name, line.overrides):
            raise
        tree = load_tree(loader, line.config_name, line.overrides, is_sweep=True)
    is_sweep = is_sweep or (info.is_heavy and tree.hydra.mode == RunMode.MULTIRUN)
    require_obeyed(line.overrides, is_sweep=is_sweep)
    front = Front(line, info, loader, tree)
    if is_sweep:
        front.start_sweep()
    else:
        front.start_one()


class Front:
    """A command line on its way to what it runs.

    Args:
        line: the command line.
        info: about its command.
        loader: composed it.
        tree: what it composed, with Hydra's own section.
    """

    def __init__(
        self, line: CommandLine, info: CommandInfo, loader: Loader, tree: DictConfig
    ) -> None:
        self.line, self.info, self.loader, self.tree = line, info, loader, tree

    def start_one(self) -> None:
        """Run one command in this process, or print what it would cost."""
        command = self.check(composed(self.tree, self.line.overrides, flags=self.line.flags))
        if self.info.is_heavy and command.match:  # which is between points, though there is one
            self.launch_heavy([command], [self.line.overrides])
        elif self.info.is_heavy and command.dry_run:
            self.show_dry_run([command])
        else:
            run_checked(command)

    def start_sweep(self) -> None:
        """Run a sweep, each point in a process of its own if it is heavy, or print what it would cost."""
        jobs = sweep_jobs(self.loader, self.tree, self.line.overrides)
        if not jobs:  # the sweeper chooses the points: what all of them share is checked
            require_no_points(self.compose(fixed(self.loader, self.line.overrides)))
        points = check_points(self.compose, jobs)
        if self.info.is_heavy:
            self.launch_heavy(points, jobs)
        else:
            self.remember(points, jobs)
            launch(self.loader, self.tree, CheckedJobs(points), {})

    def launch_heavy(self, points: Sequence[Any], jobs: Sequence[Sequence[str]]) -> None:
        """Adjust the points to one another, and launch them."""
        # These import torch and Lightning, which a command that is refused need not wait for.
        from llm.launch.sweep_job import job
        from llm.launch.sweep_runner import adjusted, launch_sweep

        points = adjusted(points, self.compose)
        if points and points[0].dry_run:
            self.show_dry_run(points)
            return
        self.remember(points, jobs)
        start = partial(launch, self.loader, self.tree, job)
        sys.exit(launch_sweep(self.line, points, master=self.tree, start=start))

    def show_dry_run(self, points: Sequence[Any]) -> None:
        """Print what each point would cost."""
        from llm.training.dry_run import show_dry_run  # imports torch and Lightning

        show_dry_run(points)

    def compose(self, overrides: Sequence[str]) -> Any:
        """Compose and check a point."""
        tree = load_tree(self.loader, self.line.config_name, overrides)
        return self.check(composed(tree, overrides, flags=self.line.flags))

    def check(self, point: Composed) -> Any:
        """Check a point and return its command."""
        target = OmegaConf.select(point.config, "_target_")
        if isinstance(target, str) and not names_command(self.line.name, target):
            raise ConfigError(
                f"_target_: {target} is not llm {self.line.name}; leave it as {self.line.name}.yaml has it"
            )
        first = partial(require_places, self.line.name, self.info)
        return check_composed(self.loader, point, first=first)

    def remember(self, points: Sequence[Any], jobs: Sequence[Sequence[str]]) -> None:
        """Let the loader answer for points that are composed."""
        for job, point in zip(jobs, points, strict=True):
            own = frozenset(word for word in job if not word.startswith("hydra"))
            self.loader.points[own] = point.composed


class CheckedJobs:
    """Runs the commands of a sweep in the launcher's process.

    In another process, which a launcher may choose, there are none, and a point is checked when it is called.

    Args:
        commands: in the order of the sweep.
    """

    def __init__(self, commands: Sequence[Any]) -> None:
        self.commands = commands

    def __getstate__(self) -> dict[str, Any]:
        return {"commands": ()}

    def __call__(self, config: DictConfig) -> None:
        """Run the point that the launcher has composed."""
        number = HydraConfig.get().job.num
        run_checked(self.commands[number] if self.commands else check(launched(config)))


def run_checked(command: Any) -> None:
    """Run one command in this process."""
    # As Hydra does for its jobs; logging that is set up already is kept.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    command.run()


def require_no_points(shared: Any) -> None:
    """Refuse what needs the points of a sweep before it starts, when its sweeper chooses them one by one.

    Args:
        shared: the command without the values that are swept.

    Raises:
        ConfigError: with a line for each key.
    """
    keys = [key for key in ("dry_run", "match") if getattr(shared, key, None)]
    if keys:
        way_out = "leave it out, or list the values and leave out hydra/sweeper="
        raise ConfigError(
            *(f"{key}: the sweeper chooses its points one by one; {way_out}" for key in keys)
        )


def names_command(name: str, target: str) -> bool:
    """Return whether a root is that of a command; one outside of `llm.commands` is a user's own."""
    return target.startswith(f"llm.commands.{name}.") or not target.startswith("llm.commands.")


def require_places(name: str, info: CommandInfo, point: Composed) -> None:
    """Refuse paths of data and of runs that lead nowhere, before anything heavy is imported.

    `dry_run=true` needs no data, and `llm plan` none either.

    Raises:
        ConfigError: a path leads to no file, folder or run.
    """
    config: Any = point.config
    for group, tasks in {"weights": info.reads, "reward": ("reward",)}.items():
        path = OmegaConf.select(config, f"{group}.path", throw_on_missing=False)
        if point.choices.get(group) == "run" and isinstance(path, str) and path.strip():
            require_run(path, f"{group}.path", tasks=tasks)
    if name == "train" and not config.get("dry_run"):
        require_paths(config.get("data") or {})
    require_paths(config, keys=("test_path", "file"), section="")
