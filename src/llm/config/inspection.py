"""Output about a configuration: `--help`, `--cfg`, `--info` and completion."""

import contextlib
import sys
from collections.abc import Sequence

from hydra._internal.hydra import Hydra

from llm.config.command_line import CommandLine
from llm.config.composition import chosen_options, load_tree
from llm.config.loader import Loader
from llm.config.texts import quoted_text
from llm.terminal import console


class CommandView(Hydra):
    """Hydra's displays, limited to the groups from which a command chooses."""

    def __init__(self, loader: Loader, line: CommandLine) -> None:
        super().__init__("llm", loader)
        self.loader, self.line = loader, line
        self.roots: set[str] | None = None

    def list_all_config_groups(self, parent: str = "") -> Sequence[str]:
        """List the groups of the command and Hydra's own."""
        groups = super().list_all_config_groups(parent)
        return [group for group in groups if group.partition("/")[0] in (self.roots or ())]

    def show(self, header: str) -> None:
        """Print the requested output.

        Args:
            header: the first lines of the help.

        Raises:
            ConfigError: the configuration cannot be composed.
        """
        line, args = self.line, self.line.args
        if line.composes_to_show:
            hydra = load_tree(self.loader, line.config_name, line.overrides).hydra
            self.roots = {group.partition("/")[0] for group in ("hydra", *chosen_options(hydra))}
        # The user's folder may be untrusted, and Hydra prints the names in it unescaped.
        with contextlib.redirect_stdout(console.Printable(sys.stdout)):  # pyright: ignore
            if args.help:
                self._show_help(header)
            elif args.hydra_help:
                self.hydra_help(line.config_name, line.parser, args)
            elif args.cfg:
                self.show_cfg(
                    line.config_name, line.overrides, args.cfg, args.package, args.resolve
                )
            elif args.info:
                self.show_info(args.info, line.config_name, line.overrides)
            else:
                sys.argv[0] = "llm"  # the command to complete, however this process was started
                self.shell_completion(line.config_name, line.overrides)

    def _show_help(self, header: str) -> None:
        ours = ["hydra/help=command", f"hydra.help.header={quoted_text(header)}"]
        self.loader.own |= set(ours)
        self.line.args.overrides += ours
        self.app_help(self.line.config_name, self.line.parser, self.line.args)
