"""Running means of several metrics over examples, on all devices."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

# Apple's MPS has no float64: there the sum of a batch is exact and the sum over batches is float32.
WIDE = torch.float32 if torch.backends.mps.is_available() else torch.float64


class Sums(Metric):
    """Sums over all batches and devices, for means that are divided once at the end.

    Args:
        shape: shape of the summed values.
        weights: dtype of the sum of the weights.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, *shape: int, weights: torch.dtype = torch.int64) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(shape, dtype=WIDE), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=weights), dist_reduce_fx="sum")

    @property
    def mean(self) -> Tensor:
        """The mean; NaN before any value."""
        return self.sums / self.count


class Means(Sums):
    """The mean of each of several metrics, over all examples of all batches and devices.

    Args:
        names: names of the metrics, which have one value per example.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(len(names))
        self.names = tuple(names)

    def update(
        self, metrics: Mapping[str, Float[Tensor, "B"]], mask: Bool[Tensor, "B"] | None = None
    ) -> None:
        """Add a batch.

        Args:
            metrics: the values of the examples under each name.
            mask: which examples count; all by default.
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
        """Return the mean under each name; NaN before any example."""
        return dict(zip(self.names, self.mean.tolist(), strict=True))

    def take(self) -> dict[str, float]:
        """Return the means so far and reset them."""
        means = self.compute()
        self.reset()
        return means
