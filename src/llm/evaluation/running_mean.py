"""Running means over the examples of all devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

# Apple's MPS has no float64.
WIDE = torch.float32 if torch.backends.mps.is_available() else torch.float64


class Sums(Metric):
    """Means over all batches and devices, divided once at the end.

    Args:
        shape: shape of the means.
        weights: dtype of the sum of the weights.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, *shape: int, weights: torch.dtype = torch.int64) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(shape, dtype=WIDE), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=weights), dist_reduce_fx="sum")

    def compute(self) -> Any:
        """Return the means; NaN before any value."""
        return self.sums / self.count


class Means(Sums):
    """The means of several metrics that have one value per example.

    Args:
        names: names of the metrics.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(len(names))
        self.names = tuple(names)

    def update(
        self, metrics: Mapping[str, Float[Tensor, "B"]], mask: Bool[Tensor, "B"] | None = None
    ) -> None:
        """Add a batch.

        Args:
            metrics: the values of the examples by name.
            mask: which examples count; None for all.
        """
        values = torch.stack([metrics[name].detach() for name in self.names]).to(self.sums.dtype)
        if mask is None:
            mask = torch.ones_like(values[0], dtype=torch.bool)
        self.sums += (values * mask).sum(-1)
        self.count += mask.sum()

    @property
    def state(self) -> dict[str, Tensor]:
        """Return this process's sums, on the CPU."""
        return {"sums": self.sums.cpu(), "count": self.count.cpu()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums from `state`."""
        for name, value in state.items():
            setattr(self, name, value.to(self.device, copy=True))

    def compute(self) -> dict[str, float]:
        """Return the means by name; NaN before any example."""
        return dict(zip(self.names, super().compute().tolist(), strict=True))

    def take(self) -> dict[str, float]:
        """Return the means so far and reset them."""
        means = self.compute()
        self.reset()
        return means
