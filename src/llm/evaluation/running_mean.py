"""Means of several figures over examples, wherever the examples are."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """The mean of each of some figures, over all examples of all batches and devices alike.

    Args:
        names: of the figures; each has a value an example.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        # Apple's MPS has no float64.
        wide = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("sums", torch.zeros(len(self.names), dtype=wide), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, figures: Mapping[str, Float[Tensor, "B"]], mask: Bool[Tensor, "B"] | None = None
    ) -> None:
        """Add a batch.

        Args:
            figures: a value an example, under each of the names.
            mask: which examples count; all by default.
        """
        values = torch.stack([figures[name].detach() for name in self.names]).to(self.sums.dtype)
        if mask is None:
            mask = torch.ones_like(values[0], dtype=torch.bool)
        self.sums += (values * mask).sum(-1)
        self.count += mask.sum()

    @property
    def state(self) -> dict[str, Tensor]:
        """This process's sums, on the CPU."""
        return {"sums": self.sums.cpu(), "count": self.count.cpu()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with sums that stood in `state`."""
        for name, value in state.items():
            setattr(self, name, value.to(self.device, copy=True))

    def compute(self) -> dict[str, float]:
        """Each name with its mean; NaN before any example."""
        return dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))

    def take(self) -> dict[str, float]:
        """The means so far; the next ones begin anew."""
        means = self.compute()
        self.reset()
        return means
