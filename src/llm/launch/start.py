"""Starting a command line: one command in this process, or a sweep."""

import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from llm.config.check import check
from llm.config.command_info import CommandInfo
from llm.config.command_line import CommandLine, config_dir, parse
from llm.config.composed import Composed
from llm.config.composition import (
    check_composed,
    check_points,
    compose,
    composed,
    fixed_overrides,
    launched_point,
    load_tree,
    requests_sweep,
    sweep_jobs,
)
from llm.config.errors import ConfigError, collecting, raise_all
from llm.config.explanation import WrongOverridesError
from llm.config.hydra_section import require_used
from llm.config.inspection import CommandView
from llm.config.loader import CONF, Loader, open_loader
from llm.config.overrides import is_hydras
from llm.data.paths import KEYS, require_paths
from llm.launch.hydra_launch import launch
from llm.launch.job_file import read_composed
from llm.runs import require_run


def start_job(name: str, words: Sequence[str]) -> None:
    """Run a command that another process has composed.

    Args:
        name: the command.
        words: a job file and the packages that it may trust.

    Raises:
        ConfigError: the file is not a job file, or its configuration is wrong.
    """
    if not words:
        raise ConfigError("--job: no file is given; pass a job file from the folder of a sweep")
    point = read_composed(Path(words[0]), words[1:])
    require_command(name, point)
    run_checked(check(point))


def start(name: str, words: Sequence[str], info: CommandInfo) -> None:
    """Compose and check a command line, then run it or print the requested output.

    Raises:
        ConfigError: all problems of the configuration.
        SystemExit: a sweep has ended; with its status.
    """
    line = parse(name, words, folders=info.folders)
    loader = open_loader(line.args.config_path or CONF, config_dir(line.args.config_dir))
    if line.shows:
        header = f"llm {name}: {info.help}\n\n    {info.example}"
        CommandView(loader, line).show(header)
        return
    is_sweep = line.is_sweep or requests_sweep(loader, line.config_name, line.overrides)
    invocation = Invocation(line, info, loader)
    invocation.load(is_sweep=is_sweep)
    is_sweep = is_sweep or (info.is_heavy and invocation.tree.hydra.mode == RunMode.MULTIRUN)
    has_directory = name in ("train", "plan")  # llm plan accepts the overrides of llm train
    require_used(line.overrides, is_sweep=is_sweep, has_directory=has_directory)
    if is_sweep:
        invocation.start_sweep()
    else:
        invocation.start_one()


class Invocation:
    """A command line that is about to run.

    Args:
        line: the command line.
        info: facts about its command.
        loader: the loader that composes it.

    Attributes:
        tree: the composed tree, with Hydra's own section.
    """

    tree: DictConfig

    def __init__(self, line: CommandLine, info: CommandInfo, loader: Loader) -> None:
        self.line, self.info, self.loader = line, info, loader

    def load(self, *, is_sweep: bool) -> None:
        """Compose the tree. If some overrides are wrong, the values of the others are checked too.

        Raises:
            ConfigError: all problems.
        """
        name, words = self.line.config_name, self.line.overrides
        try:
            self.tree = load_tree(self.loader, name, words, is_sweep=is_sweep)
        except WrongOverridesError as error:
            if not error.beginnings:  # there is nothing to check, and no need to import torch
                raise
            further: list[str] = []
            with collecting(further):
                if is_sweep:
                    tree = load_tree(self.loader, name, error.others, is_sweep=True)
                    check_points(self.compose, sweep_jobs(self.loader, tree, error.others))
                else:
                    self.compose(error.others)
            # Problems of other keys may be caused by leaving out the wrong overrides.
            typed = error.beginnings
            others = (line for line in further if line.rpartition(" | ")[2].startswith(typed))
            raise ConfigError(*error.problems, *others) from error

    def start_one(self) -> None:
        """Run one command in this process, or print its dry run."""
        command = self.check(composed(self.tree, self.line.overrides, flags=self.line.flags))
        if self.info.is_heavy and command.match:  # handled as a sweep of one point
            self.launch_heavy([command], [self.line.overrides])
        elif self.info.is_heavy and command.dry_run:
            self.show_dry_run([command])
        else:
            run_checked(command)

    def start_sweep(self) -> None:
        """Run a sweep, each point in its own process if the command is heavy, or print its dry run."""
        jobs = sweep_jobs(self.loader, self.tree, self.line.overrides)
        if not jobs:  # the sweeper chooses the points later: only what they share can be checked
            require_no_points(self.compose(fixed_overrides(self.loader, self.line.overrides)))
        points = check_points(self.compose, jobs)
        if self.info.is_heavy:
            self.launch_heavy(points, jobs)
        else:
            self.launch_light(points, jobs)

    def launch_light(self, points: Sequence[Any], jobs: Sequence[Sequence[str]]) -> None:
        """Run the points one after the other, or as the launcher does, without a folder for the sweep."""
        if "submitit" in self.tree.hydra.launcher._target_:
            raise ConfigError(
                f"hydra.launcher: jobs on a cluster cannot print the output of llm {self.line.name} here; "
                "leave it out, or use hydra/launcher=joblib"
            )
        if points and "BasicLauncher" in self.tree.hydra.launcher._target_:
            for point in points:
                run_checked(point)
            return
        self.store_points(points, jobs)
        with tempfile.TemporaryDirectory(prefix="llm-") as folder:
            changes = {"sweep.dir": folder, "sweep.subdir": "."}
            launch(self.loader, self.tree, run_point, changes)

    def launch_heavy(self, points: Sequence[Any], jobs: Sequence[Sequence[str]]) -> None:
        """Adjust the points to one another, and launch them."""
        # Imports torch and Lightning, which takes seconds: a wrong command line fails before.
        from llm.launch.sweep_job import job
        from llm.launch.sweep_runner import adjust_points, launch_sweep

        points = adjust_points(points, self.compose)
        if points and points[0].dry_run:
            self.show_dry_run(points)
            return
        self.store_points(points, jobs)
        start = partial(launch, self.loader, self.tree, job)
        sys.exit(launch_sweep(self.line, points, master=self.tree, start=start))

    def show_dry_run(self, points: Sequence[Any]) -> None:
        """Print the dry run of each point."""
        # Imports torch and Lightning, which takes seconds.
        from llm.training.dry_run import show_dry_run

        show_dry_run(points)

    def compose(self, overrides: Sequence[str]) -> Any:
        """Compose and check a point."""
        line = self.line
        return self.check(compose(self.loader, line.config_name, overrides, flags=line.flags))

    def check(self, point: Composed) -> Any:
        """Check a point and return its command."""
        require_command(self.line.name, point)
        found = missing_paths(self.line.name, self.info, point)
        return check_composed(self.loader, point, found=found)

    def store_points(self, points: Sequence[Any], jobs: Sequence[Sequence[str]]) -> None:
        """Store composed points in the loader, so that Hydra's launcher does not compose them again."""
        for job, point in zip(jobs, points, strict=True):
            own = frozenset(word for word in job if not is_hydras(word))
            self.loader.points[own] = point.composed


def run_point(config: DictConfig) -> None:
    """Run a point of a sweep. Hydra's launcher calls this, in any process."""
    run_checked(check(launched_point(config)))


def run_checked(command: Any) -> None:
    """Run one command in this process."""
    # As Hydra does for its jobs. Existing logging handlers are kept.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    command.run()


def require_no_points(shared: Any) -> None:
    """Refuse keys that need all points before the sweep starts, if the sweeper chooses them one by one.

    Args:
        shared: the command without the swept values.

    Raises:
        ConfigError: a line for each key.
    """
    remedy = "leave it out, or list the values and leave out hydra/sweeper="
    raise_all(
        f"{key}: the sweeper chooses its points one by one; {remedy}"
        for key in ("dry_run", "match")
        if getattr(shared, key, None)
    )


def require_command(name: str, point: Composed) -> None:
    """Refuse a configuration of another command; one outside of `llm.commands` is a user's own.

    Raises:
        ConfigError: it is another command's.
    """
    target = str(OmegaConf.select(point.config, "_target_"))
    if target.startswith("llm.commands.") and not target.startswith(f"llm.commands.{name}."):
        raise ConfigError(
            f"_target_: {target} is not llm {name}; begin the defaults of your config with {name}"
        )


def missing_paths(name: str, info: CommandInfo, point: Composed) -> list[str]:
    """Return a line for each path of data or a run that does not exist. `dry_run=true` and `llm plan` need no data."""
    config: Any = point.config
    lines: list[str] = []
    for group, tasks in {"weights": info.reads, "reward": ("reward",)}.items():
        path = OmegaConf.select(config, f"{group}.path", throw_on_missing=False)
        if point.choices.get(group) == "run" and isinstance(path, str) and path.strip():
            with collecting(lines):
                require_run(path, f"{group}.path", tasks=tasks)
    data = config.get("data") if name == "train" and not config.get("dry_run") else None
    for section, prefix, keys in ((data or {}, "data.", KEYS), (config, "", ("test_path", "file"))):
        for key in keys:
            with collecting(lines):
                require_paths(section, keys=(key,), section=prefix)
    return lines
