"""A run on Weights & Biases that does not delay or stop training when W&B is unreachable.

Behaviour of W&B (0.31), and the countermeasures here:

- Without a network, `wandb.init` tries its login, the server's features and the run, 100 seconds in all, and
  raises. Here the server is contacted first, the wait for the run is limited, and a later failure leads to an
  offline run.
- All logging goes through a process, wandb-core. If that process dies, every call raises (`ConnectionResetError`),
  including `finish`. Here the run is opened again once, offline and under the same id: `wandb sync` joins the
  parts. metrics.csv has all metrics in any case.
- That process writes its file every 15 seconds, here every second, because unwritten data are lost if it dies.
- `finish` waits for the server without a limit, here up to `patience`; the run's folder keeps unsent data.
- Even a process whose runs are all offline sends telemetry when it ends, unless WANDB_ERROR_REPORTING is false.
- It saves code, git state, console, packages, hardware and the host's name: here each only if W&B's own variable
  for it (WANDB_CONSOLE, WANDB_DISABLE_GIT, …) is set.
"""

import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from llm.network import call_within
from llm.runs import display_path
from llm.terminal import shell

Mode = Literal["online", "offline", "disabled"]
SERVER_TIMEOUT = 5.0  # seconds to wait for any reply of the server
WRITE_INTERVAL = 1.0  # seconds between W&B's writes of its file
INIT_TIMEOUT = 20.0  # seconds to wait for the server to accept the run
PRIVATE = {
    "console": "off",
    "disable_git": True,
    "label_disable": True,
    "save_code": False,
    "host": "",
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class ResilientRun:
    """A run on W&B that stays open until `finish`, despite failures of the network and of W&B's process.

    Args:
        directory: the folder in which W&B creates its folder `wandb`.
        mode: `online`, `offline` or `disabled`.
        patience: seconds to wait at the end until everything is sent.
        identity: arguments of `wandb.init` (id, name, project, config, …).
    """

    def __init__(
        self, directory: Path, mode: Mode, *, patience: float, identity: dict[str, Any]
    ) -> None:
        self.directory = directory
        self.mode: Mode = mode
        self.patience = patience
        self.identity = identity
        self.attempts = 2  # how often a run may still be opened
        self.run: Any = None
        self.wandb: Any = None  # the package, imported by `open`
        self.is_incomplete = False  # whether W&B lacks a part of the online log
        self._owns_data = False

    def open(self) -> None:
        """Start or resume the run; offline if the server cannot be reached.

        Raises:
            ValueError: W&B rejects the user's settings: there is no API key, or a setting is wrong.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._owns_data = "WANDB_DATA_DIR" not in os.environ
        if self._owns_data:  # otherwise copies of artifacts go to the home folder
            os.environ["WANDB_DATA_DIR"] = str(self.directory / "wandb")
        # Here, because wandb takes half a second to import and reads the environment then.
        import wandb
        from pydantic import ValidationError
        from wandb.errors import UsageError

        self.wandb = wandb
        try:
            if self.mode == "online":
                _require_server(wandb.setup().settings.base_url)
            self.run = self._begin()
        except UsageError as error:
            self._reset_wandb()
            way_out = " Or choose mode=offline" if self.mode == "online" else ""
            raise ValueError(f"Weights & Biases: {_line(error)}{way_out}") from error
        except ValidationError as error:  # of W&B's settings, from arguments or the environment
            self._reset_wandb()
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(
                f"Weights & Biases refuses a setting ({wrong}): correct its WANDB_ variable"
            ) from error
        except Exception as error:
            self._fall_back(error)

    def do(self, act: Callable[[Any], object], log_again: Callable[[Any], object]) -> None:
        """Apply `act` to W&B's run; if that fails, open another in its place and repeat it there.

        Args:
            act: the action on a `wandb.Run`.
            log_again: logs what the failed run may not have written, before `act` is repeated.
        """
        actions = [act]
        while self.run is not None:
            try:
                for each in actions:
                    each(self.run)
                return
            except Exception as error:  # of any kind: none may stop training
                self._fall_back(error)
                actions = [log_again, act]

    def finish(self, exit_code: int, log_again: Callable[[Any], object]) -> None:
        """End the run and release its data folder.

        Args:
            exit_code: exit code of the training, which sets the run's state on W&B.
            log_again: see `do`.
        """

        def end(run: Any) -> None:
            try:
                run.finish(exit_code=exit_code)
            except TimeoutError:  # patience is exhausted
                self.is_incomplete = True

        self.do(end, log_again)
        self.run = None
        if self._owns_data:
            os.environ.pop("WANDB_DATA_DIR", None)
            self._make_deletable()

    def _make_deletable(self) -> None:
        """Make the copies for `wandb sync`, which are read-only, deletable."""
        for copy in (self.directory / "wandb" / "artifacts" / "staging").glob("*"):
            if copy.is_file() and not copy.is_symlink():
                copy.chmod(0o600)

    @property
    def sync_command(self) -> str | None:
        """Return the command that sends the local data; None if there is none to send."""
        if self.mode == "disabled" or (self.mode == "online" and not self.is_incomplete):
            return None
        online = ["--include-online"] if self.is_incomplete else []
        folder = str(display_path(self.directory / "wandb"))
        return shell.command_line(shell.program("wandb"), "sync", *online, folder)

    def _begin(self) -> Any:
        private = {k: v for k, v in PRIVATE.items() if f"WANDB_{k.upper()}" not in os.environ}
        settings = self.wandb.Settings(
            silent=True,
            init_timeout=INIT_TIMEOUT,
            login_timeout=INIT_TIMEOUT,
            finish_timeout=self.patience,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=WRITE_INTERVAL,
            **private,
        )
        return self.wandb.init(
            **self.identity, dir=self.directory, mode=self.mode, resume="allow", settings=settings
        )

    def _fall_back(self, error: Exception) -> None:
        """Replace the failed run by an offline one, if an attempt is left."""
        self._reset_wandb()
        self.is_incomplete |= self.mode == "online" and self.run is not None
        self.run = None
        self.attempts -= 1
        if self.attempts:
            self.mode = "offline"
            with suppress(Exception):
                self.run = self._begin()
        rest = "the run continues offline" if self.run else "metrics continue in metrics.csv only"
        warnings.warn(f"Weights & Biases failed ({_line(error)}): {rest}", stacklevel=2)

    def _reset_wandb(self) -> None:
        """Reset W&B, which otherwise keeps the broken connection."""
        with suppress(Exception, SystemExit):  # it resets even if closing the connection raises
            self.wandb.teardown()


def _require_server(url: str) -> None:
    with suppress(urllib.error.HTTPError):  # a reply with an error status is enough
        call_within(
            SERVER_TIMEOUT, lambda: urllib.request.urlopen(url, timeout=SERVER_TIMEOUT).close()
        )


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
