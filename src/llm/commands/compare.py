"""`llm compare DIR…`: compare runs in a table and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm.comparison.finding import find
from llm.comparison.table import Table, compare
from llm.config.base import Command
from llm.config.errors import ConfigError
from llm.launch.dashboard import follow
from llm.runs import display_path
from llm.sweeps import FILE, Sweep
from llm.terminal.tables import open_console


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare runs in a table and a picture."""

    runs: Sequence[str]
    output: str
    by: str | None
    confidence: float
    seeds: Literal["folded", "rows"]
    watch: bool

    def run(self) -> Table:
        """Print the table, and write it with its picture to `output` or the folder of the sweep.

        Raises:
            UserError: no folder is given, the folders contain no runs, or no run has the metric to rank by.
        """
        if not self.runs:
            raise ConfigError(
                "runs: nothing to compare; pass folders, as in llm compare outputs/sweeps/NAME, or outputs/pretraining"
            )
        folders = [Path(folder) for folder in self.runs]
        sweep = folders[0] if len(folders) == 1 and (folders[0] / FILE).is_file() else None
        if self.watch:
            if sweep is None:
                raise ConfigError(
                    "watch: pass one sweep, as in llm compare outputs/sweeps/NAME watch=true"
                )
            follow(Sweep(sweep))
        runs, damaged = find(folders)
        table = compare(
            runs, self.by, confidence=self.confidence, seeds=self.seeds, remarks=damaged
        )
        console = open_console()
        console.print(table.render(console.width))
        for run in table.best:
            console.print(f"best   {display_path(run.path)}", soft_wrap=True)
        output = Path(self.output) if self.output else sweep
        if output is None:
            hint = "output=FOLDER writes this as table.csv, table.md and loss.png"
            console.print(hint, style="dim")
            return table
        files = ", ".join(str(display_path(file)) for file in table.write(output))
        console.print(f"wrote  {files}", soft_wrap=True)
        return table
