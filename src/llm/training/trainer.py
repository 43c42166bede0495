"""The budget of a run, and the numbers derived from it."""

import math
from dataclasses import dataclass

# Validating a token takes a third of the time of training on it. A byte token is one byte, a byte-pair token is three
# to four.
VALIDATED_BYTES = 1.5  # for each training token
LEAST_VALIDATED = 1 << 15  # bytes; a loss over fewer is too noisy


@dataclass(frozen=True)
class TrainerSettings:
    """The budget of a run, and its intervals. Exactly one of the three `max_` arguments sets the budget.

    Args:
        max_steps: optimizer steps.
        max_epochs: passes over the training data, rounded up to whole steps.
        max_tokens: training tokens, rounded up to whole steps.
        accumulate: micro-batches per optimizer step.
        gradient_clip: global norm to which gradients are clipped; null does not clip.
        val_every: steps between validations; null means a tenth of the run.
        val_batches: maximum number of validation batches; null means that `val_bytes` decides.
        val_bytes: maximum bytes of text that a validation during training reads, spread over the validation data; null
            means 1.5 times the tokens trained since the last one, so that validation takes at most half the time of
            training, and an eighth with byte-pair tokens.
        log_every: steps between logged training metrics.
    """

    max_steps: int | None = None
    max_epochs: float | None = None
    max_tokens: float | None = None
    accumulate: int = 1
    gradient_clip: float | None = 1.0
    val_every: int | None = None
    val_batches: int | None = None
    val_bytes: float | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        budgets = {key: getattr(self, key) for key in ("max_steps", "max_epochs", "max_tokens")}
        given = [key for key, value in budgets.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or f"none of {', '.join(budgets)}"
            example = "" if given else ", as in trainer.max_steps=1000"
            raise ValueError(
                f"{found} given: set exactly one of them and the others to null{example}"
            )
        numbers = {key: value for key, value in vars(self).items() if value is not None}
        if wrong := [f"{key}={value}" for key, value in numbers.items() if not value > 0]:
            raise ValueError(f"{', '.join(wrong)}: give a number above 0")
        if budgets[given[0]] == math.inf:
            raise ValueError(f"{given[0]}=inf: give a number above 0 that is finite")

    def steps(self, batches_per_epoch: float, tokens_per_batch: float) -> int:
        """Return the budget in optimizer steps.

        Args:
            batches_per_epoch: micro-batches in one pass over the training data; may be fractional.
            tokens_per_batch: mean tokens in a micro-batch of all devices.
        """
        if self.max_steps is not None:
            return self.max_steps
        if self.max_epochs is not None:
            return max(1, math.ceil(self.max_epochs * batches_per_epoch / self.accumulate - 1e-9))
        assert self.max_tokens is not None
        return max(1, math.ceil(self.max_tokens / (tokens_per_batch * self.accumulate)))

    def validation_interval(self, steps: int) -> int:
        """Return the optimizer steps between validations in a run of `steps`."""
        return min(self.val_every or math.ceil(steps / 10), steps)

    def validation_bytes(self, steps: int, tokens_per_batch: float) -> float:
        """Return the maximum bytes of text that a validation reads in a run of `steps`."""
        if self.val_batches is not None:
            return math.inf
        if self.val_bytes is not None:
            return self.val_bytes
        trained = self.validation_interval(steps) * self.accumulate * tokens_per_batch
        return max(LEAST_VALIDATED, VALIDATED_BYTES * trained)
