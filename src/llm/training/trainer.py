"""How long and how a run trains: the budget, and what is derived from it."""

import math
from dataclasses import dataclass

# Validating a token costs a third of training on it, and a token is a byte or, of byte pairs, three or four.
VALIDATED_BYTES = 1.5  # for each token trained on
LEAST_VALIDATED = 1 << 15  # bytes: less tells too little


@dataclass(frozen=True)
class TrainerSettings:
    """The budget of a run and its rhythm. Exactly one of the three `max_` words sets the budget.

    Args:
        max_steps: optimizer steps.
        max_epochs: passes over the training part, rounded up to whole steps.
        max_tokens: training tokens, rounded up to whole steps.
        accumulate: micro-batches an optimizer step gathers.
        gradient_clip: the global norm gradients are clipped to; null does not clip.
        val_every: steps between validations; null takes a tenth of the run.
        val_batches: at most this many validation batches; null leaves it to `val_bytes`.
        val_bytes: bytes of text that a validation during training reads at most, spread over the part; null takes
            half as many again as tokens are trained on between two validations, so that validating takes at most
            half as long as training, and an eighth of it with byte-pair tokens. Smaller parts are read whole.
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
            told = " and ".join(given) or f"none of {', '.join(budgets)}"
            example = "" if given else ", as in trainer.max_steps=1000"
            raise ValueError(
                f"{told} given: set exactly one of them and the others to null{example}"
            )
        for key in (
            *given,
            "accumulate",
            "val_every",
            "val_batches",
            "val_bytes",
            "log_every",
            "gradient_clip",
        ):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"{key}={value}: give a number above 0")
        if budgets[given[0]] == math.inf:
            raise ValueError(f"{given[0]}=inf: give a number above 0 that is finite")

    def steps(self, batches_per_epoch: float, tokens_per_batch: float) -> int:
        """The budget in optimizer steps.

        Args:
            batches_per_epoch: micro-batches in one pass over the training part; need not be whole.
            tokens_per_batch: tokens in a micro-batch, shared by all devices; on average where it varies.
        """
        if self.max_steps is not None:
            return self.max_steps
        if self.max_epochs is not None:
            return max(1, math.ceil(self.max_epochs * batches_per_epoch / self.accumulate - 1e-9))
        assert self.max_tokens is not None
        return max(1, math.ceil(self.max_tokens / (tokens_per_batch * self.accumulate)))

    def validation_interval(self, steps: int) -> int:
        """Optimizer steps between validations in a run of `steps`."""
        return min(self.val_every or math.ceil(steps / 10), steps)

    def validation_bytes(self, steps: int, tokens_per_batch: float) -> float:
        """Bytes of text that a validation during training reads at most.

        Args:
            steps: of the run.
            tokens_per_batch: as for `steps`.
        """
        if self.val_batches is not None:
            return math.inf
        if self.val_bytes is not None:
            return self.val_bytes
        trained = self.validation_interval(steps) * self.accumulate * tokens_per_batch
        return max(LEAST_VALIDATED, VALIDATED_BYTES * trained)
