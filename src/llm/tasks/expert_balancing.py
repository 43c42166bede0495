"""The losses, biases and metrics of a model's mixtures of experts, in the training of any task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import starmap

import torch
from torch import Tensor, nn

from llm.nn.mixture_of_experts import MixtureOfExperts
from llm.nn.routing import RoutingSums, load_balancing_loss, routing_sums


class ExpertBalancing:
    """The routing of an optimizer step in all mixtures of experts whose routers are trained.

    A forward pass counts if it computes gradients: that of a reference model and the generation of responses do not.
    Neither does the second pass of activation checkpointing, which runs in the backward pass.

    Args:
        model: the model.
        total: sums a tensor over all ranks.

    Attributes:
        layers: the mixtures.
        sums: for each layer, the sums of the optimizer step so far, on all ranks.
    """

    def __init__(self, model: nn.Module, total: Callable[[Tensor], Tensor]) -> None:
        self.layers = [
            module
            for module in model.modules()
            if isinstance(module, MixtureOfExperts)
            and any(parameter.requires_grad for parameter in module.router.parameters())
        ]
        self.total = total
        self._batch: list[
            RoutingSums
        ] = []  # of the newest micro-batch on this rank, with gradients
        self.sums: list[RoutingSums] = []  # of the optimizer step so far, on all ranks

    def start_step(self) -> None:
        """Forget the previous optimizer step."""
        self.sums = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward passes inside this block."""
        for layer in self.layers:
            layer.records = []
        try:
            yield
            self._batch = [_sums(layer) for layer in self.layers]
        finally:
            for layer in self.layers:
                layer.records = None

    def loss(self) -> Tensor | None:
        """Return the mean of the layers' losses for what was recorded; None if there is no mixture.

        The share of tokens that chose an expert is that of the micro-batches of all ranks, so that several devices
        train like one (Qiu et al. 2025, "Demons in the detail").
        """
        if not self.layers:
            return None
        own = [sums.packed for sums in self._batch]
        everywhere = self.total(torch.cat([packed.detach() for packed in own]))
        parts = everywhere.split([len(packed) for packed in own])
        before = [sums.packed for sums in self.sums] or [torch.zeros_like(part) for part in parts]
        self.sums = [RoutingSums.unpacked(a + b) for a, b in zip(before, parts, strict=True)]
        pairs = zip(self.layers, self._batch, map(RoutingSums.unpacked, parts), strict=True)
        self._batch = []
        return torch.stack([*starmap(_loss, pairs)]).mean()

    def update_biases(self) -> None:
        """Change the biases of the experts by their loads in the optimizer step."""
        for layer, sums in zip(self.layers, self.sums, strict=False):
            layer.update_bias(sums.counts)

    def metrics(self) -> dict[str, float]:
        """Return the means over the layers for the optimizer step; waits for the device.

        `load` is the tokens of the most chosen expert, divided by the mean of all experts. The losses are without their
        coefficients.
        """
        if not self.sums:
            return {}
        rows = torch.stack([torch.stack(_measures(sums)) for sums in self.sums])  # (layers, 4)
        names = ("load", "router_entropy", "load_balancing_loss", "router_z_loss")
        return dict(zip(names, rows.mean(dim=0).tolist(), strict=True))


def _sums(layer: MixtureOfExperts) -> RoutingSums:
    """Return the sums of all passes that a layer recorded."""
    assert layer.records is not None
    found = [routing_sums(routing, real).packed for routing, real in layer.records]
    # A new tensor, because that of a sharded weight would be a DTensor.
    empty = torch.zeros(2 * len(layer.experts) + 3, device=layer.router.weight.device)
    return RoutingSums.unpacked(sum(found, start=empty))


def _loss(layer: MixtureOfExperts, own: RoutingSums, everywhere: RoutingSums) -> Tensor:
    """Return a layer's losses, with their coefficients."""
    tokens = own.tokens.clamp(min=1)
    fractions = everywhere.counts / everywhere.tokens.clamp(min=1)
    balance = load_balancing_loss(fractions, own.probabilities / tokens)
    given = layer.balancing
    return given.load_balancing * balance + given.router_z * own.z / tokens


def _measures(sums: RoutingSums) -> tuple[Tensor, ...]:
    """Return the metrics of a layer."""
    tokens = sums.tokens.clamp(min=1)
    balance = load_balancing_loss(sums.counts / tokens, sums.probabilities / tokens)
    load = sums.counts.max() / sums.counts.mean().clamp(min=1e-9)
    return load, sums.entropy / tokens, balance, sums.z / tokens
