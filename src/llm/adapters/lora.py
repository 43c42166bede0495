"""LoRA: low-rank updates of frozen layers (Hu et al. 2021).

Finetuning adds a matrix ΔW to a layer's W. In LoRA it is the product of two small matrices, B (outputs, r) and
A (r, inputs):

    y = W x + alpha/r · B A x                              (section 4.1, equation 3)

A is initialized at random and B as zero, so that nothing changes at first. A matrix of 768 × 768 has 589,824 entries,
its A and B of rank 8 have 12,288. One of several updates can be activated (`activate`), and added to W
(`merge_updates`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llm.adapters.base import Adapted, Adapter
from llm.adapters.targets import Target, choose_targets
from llm.config.errors import suggestion


class LowRank(nn.Module):
    """The update x ↦ alpha/rank · dropout(x) Aᵀ Bᵀ of some rows of a layer's W.

    Args:
        base: the layer; A and B are on its device, in at least float32.
        rows: the rows, each of which produces one output.
        rank: r, the rows of A and the columns of B.
        alpha: strength of the update, independent of the rank.
        dropout: probability for the inputs.
    """

    def __init__(
        self, base: nn.Linear, rows: slice, *, rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        self.rows = rows
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        down = torch.empty(rank, base.in_features, dtype=dtype, device=base.weight.device)
        self.down = nn.Parameter(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))  # A
        self.up = nn.Parameter(down.new_zeros(rows.stop - rows.start, rank))  # B

    def forward(self, x: Float[Tensor, "*B inputs"]) -> Float[Tensor, "*B rows"]:
        """Return the change of these rows' outputs."""
        down, up = (matrix.to(x.dtype) for matrix in (self.down, self.up))
        return self.scale * F.linear(F.linear(self.dropout(x), down), up)

    def delta(self) -> Float[Tensor, "rows inputs"]:
        """Return ΔW, the change of the rows."""
        return self.scale * self.up @ self.down


class LoRALinear(Adapted):
    """A linear layer with low-rank updates.

    Attributes:
        base: the frozen layer.
        lora: `LowRank` updates by adapter name and by section of the layer.
        active: the adapter whose updates are applied.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora = nn.ModuleDict()
        self.active: str | None = None

    @property
    def weight(self) -> Tensor:
        """Return the W of `base`, for callers that need its device, dtype or shape."""
        return self.base.weight

    def updates(self) -> list[LowRank]:
        """Return the active updates."""
        if not self.enabled or self.active is None:
            return []
        return list(cast(nn.ModuleDict, self.lora[self.active]).values())  # pyright: ignore

    def forward(self, x: Float[Tensor, "*B inputs"]) -> Float[Tensor, "*B outputs"]:
        """Return the outputs of `base` with the updates."""
        y = self.base(x)
        for update in self.updates():
            y[..., update.rows].add_(update(x))
        return y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one layer that computes the same: `base` itself without active updates, else a new one.

        The new W is not tied and has the dtype of the updates, because that of `base` may be narrower.
        """
        base, updates = self.base, self.updates()
        if not updates:
            return base
        weight = base.weight.to(updates[0].down.dtype, copy=True)
        for update in updates:
            weight[update.rows] += update.delta()
        layer = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if base.bias is not None:
            layer.bias = nn.Parameter(base.bias.to(weight.dtype), requires_grad=False)
        return layer.train(self.training)


class LoRA(Adapter):
    """An adapter with low-rank updates of every linear layer whose name matches; the rest is frozen.

    A pattern (`*`, `?`, `[…]`) matches a layer's full name (`blocks.0.attention.output`) or its last word. The fused
    projection `query_key_value` counts as the three layers `query`, `key` and `value`, each with an A and a B of its
    own, as in the paper; its own name selects it as one layer.

    Use AdamW: Muon orthogonalizes A and B separately, which does not orthogonalize their product. AdamW's
    weight decay pulls towards the base model.

    Args:
        rank: r; memory and capacity grow with it.
        alpha: strength of the updates; scaled by alpha/rank, so that any rank needs the same learning rate.
        dropout: probability for the inputs of the updates.
        targets: patterns of names. The default is every linear layer of the blocks; `*` includes the head;
            `query` and `value` are the paper's choice.
        name: name of the adapter among several on one base model.
        frozen_dtype: see `Adapter`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[str] = ("*blocks.*",),
        name: str = "default",
        frozen_dtype: Literal["bfloat16"] | None = None,
    ) -> None:
        super().__init__(frozen_dtype)
        if rank < 1:
            raise ValueError(f"rank={rank}: give 1 or more")
        if alpha <= 0:
            raise ValueError(f"alpha={alpha}: give a number above 0")
        if not 0 <= dropout < 1:
            raise ValueError(
                f"dropout={dropout}: give a probability from 0 up to, not including, 1"
            )
        if isinstance(targets, str) or not targets:
            raise ValueError(f"targets={targets}: give a list of patterns, such as [query, value]")
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"name={name}: give a word of letters, digits and _, such as default")
        self.settings = {"rank": rank, "alpha": alpha, "dropout": dropout}
        self.targets, self.name = targets, name

    def adapt(self, model: nn.Module) -> None:
        """Add updates to the targets and activate them.

        Raises:
            ValueError: a pattern matches nothing, or the model has an adapter of this name.
        """
        if self.name in adapters(model):
            raise ValueError(
                f"name={self.name}: the model already has an adapter of this name; give another"
            )
        for target in choose_targets(model, self.targets):
            self._put(model, target)
        activate(model, self.name)

    def _put(self, model: nn.Module, target: Target) -> None:
        layer = model.get_submodule(target.layer)
        if isinstance(layer, nn.Linear):
            layer = LoRALinear(layer)
            model.set_submodule(target.layer, layer)
        assert isinstance(layer, LoRALinear)
        if self.name not in layer.lora:
            layer.lora[self.name] = nn.ModuleDict()
        parts = cast(nn.ModuleDict, layer.lora[self.name])
        parts[target.part] = LowRank(layer.base, target.rows, **self.settings)


def adapters(model: nn.Module) -> set[str]:
    """Return the names of a model's LoRA adapters."""
    return {name for _, layer in _layers(model) for name in layer.lora}


def activate(model: nn.Module, name: str | None) -> None:
    """Apply and train the updates of one adapter, or of none, and disable the others.

    Raises:
        ValueError: there is no adapter of this name.
    """
    if name is not None and name not in (known := adapters(model)):
        raise ValueError(f"no adapter is called {name}; {suggestion(name, known)}")
    for _, layer in _layers(model):
        layer.active = name if name in set(layer.lora) else None
        for each, updates in layer.lora.items():
            updates.requires_grad_(each == name)


def merge_updates(model: nn.Module) -> None:
    """Add the active updates to the layers' weights: the model has its original modules and names again."""
    for name, layer in list(_layers(model)):
        model.set_submodule(name, layer.merged())


def _layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module
