"""Diverged training: the error, and the check of a loss."""

import math

from llm.config.errors import UserError


class DivergedError(UserError):
    """The loss, a gradient or a weight became NaN or infinite."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"training diverged: {what} after step {step}; use a lower optimizer.lr, a longer schedule.warmup_steps "
            "or a lower trainer.gradient_clip such as 0.5."
        )

    def say_more(self, line: str) -> None:
        """Add a line to the message."""
        self.args = (f"{self}\n{line}",)


def require_finite_loss(name: str, loss: float, *, step: int) -> None:
    """Require a finite loss.

    Raises:
        DivergedError: the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"the {name} is {loss}", step)
