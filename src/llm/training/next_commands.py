"""The command lines that a run prints for what the user can do next."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm.config.allowlist import locate
from llm.config.fingerprint import is_among
from llm.config.hydra_section import SWEEPS
from llm.config.overrides import key_of
from llm.config.texts import quoted_text
from llm.runs import Run, display_path
from llm.terminal import shell
from llm.training.resumption import ALLOW_CHANGES
from llm.training.training_config import TrainingConfig


@dataclass(frozen=True)
class NextCommands:
    """The commands that resume, rescue or use a run."""

    config: TrainingConfig
    run: Run

    @property
    def resume(self) -> str:
        """The command that resumes the run."""
        return self._line(shell.program(), *self._words)

    @property
    def recorded(self) -> str:
        """The command that resumes the run, with the program name `llm`, for the run's record."""
        return self._line("llm", *self._words)

    @property
    def restart(self) -> str:
        """The command that trains a diverged run again, with a tenth of its learning rate."""
        return self._line(shell.program(), *self._with_lower_rate())

    @property
    def rescue(self) -> str:
        """The command that resumes a diverged run from its last checkpoint, with a tenth of its learning rate."""
        return self._line(shell.program(), *self._with_lower_rate(), f"resume={ALLOW_CHANGES}")

    @property
    def use(self) -> str:
        """The command that uses the run; its task defines it."""
        if not self.run.has_weights:
            return "(no weights were saved: callbacks.checkpoints is left out)"
        task = self.config.tree.task._target_
        command: str = locate(task, self.config.trust).command  # pyright: ignore[reportFunctionMemberAccess]
        trust = [f"trust=[{','.join(self.config.trust)}]"] if self.config.trust else []
        words = (shell.program(), command, f"weights.path={display_path(self.run.path)}", *trust)
        return self._line(*words)

    @property
    def _words(self) -> list[str]:
        """The words that resume the run. `rerun` and `resume` apply only once."""
        composed = self.config.composed
        left_out = ("rerun", "resume", *SWEEPS)
        kept = [word for word in composed.overrides if not is_among(key_of(word), left_out)]
        return ["train", *composed.flags, *kept]

    def _with_lower_rate(self) -> Sequence[str]:
        """Return the words of `llm train` for the same run, with a tenth of its learning rate."""
        is_named = any(key_of(word) == "name" for word in self._words)
        name = [] if is_named else [f"name={quoted_text(self.run.path.name)}"]
        rate = self.config.tree.optimizer.get("lr")
        others = [word for word in self._words if key_of(word) != "optimizer.lr"]
        return [*others, *name, f"optimizer.lr={rate / 10:g}" if rate else "optimizer.lr=…"]

    def _line(self, *words: str) -> str:
        return shell.command_line(*words, modules=self.config.trust)
