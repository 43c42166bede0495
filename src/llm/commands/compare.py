"""`llm compare DIR…`: put runs beside one another, in a table and a picture."""

from pathlib import Path

from omegaconf import DictConfig

from llm.comparison.finding import find
from llm.comparison.table import Table, compare
from llm.config.errors import ConfigError
from llm.config.point import Point
from llm.launch.dashboard import follow
from llm.runs import display_path
from llm.sweeps import FILE, Sweep
from llm.terminal.tables import open_console


def main(point: Point) -> None:
    """Compare the runs of a composed configuration."""
    compare_runs(point.config)


def compare_runs(config: DictConfig) -> Table:
    """Print what a composed configuration of `llm compare` asks for, and write it where it says.

    Raises:
        UserError: no folder is given, or none with runs in it; or no run has the figure to rank by.
    """
    folders = [Path(folder) for folder in config.runs]
    if not folders:
        raise ConfigError(
            "runs: nothing to compare; name folders, as in llm compare outputs/sweeps/NAME, or outputs/pretraining"
        )
    if not 0 < config.confidence < 1:
        raise ConfigError(f"confidence: {config.confidence} is not between 0 and 1; try 0.95")
    sweep = folders[0] if len(folders) == 1 and (folders[0] / FILE).is_file() else None
    if config.watch:
        if sweep is None:
            raise ConfigError(
                "watch: name one sweep, as in llm compare outputs/sweeps/NAME watch=true"
            )
        follow(Sweep(sweep))
    runs, damaged = find(folders)
    table = compare(runs, config.by, config.confidence, config.seeds, damaged)
    console = open_console()
    console.print(table.render(console.width))
    for run in table.best:
        console.print(f"best   {display_path(run.path)}", soft_wrap=True)
    output = Path(config.output) if config.output else sweep
    if output is None:
        console.print("output=FOLDER writes this as table.csv, table.md and loss.png", style="dim")
        return table
    files = ", ".join(str(display_path(file)) for file in table.write(output))
    console.print(f"wrote  {files}", soft_wrap=True)
    return table
