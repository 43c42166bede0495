"""LoRA: low-rank updates of frozen layers (Hu et al. 2021).

Finetuning adds a matrix ΔW to a layer's W. In LoRA it is the product of two small matrices, B (outputs, r) and
A (r, inputs):

    y = W x + alpha/r · B A x                              (section 4.1, equation 3)

A is initialized at random and B as zero, so that nothing changes at first. A matrix of 768 × 768 has 589,824 entries,
its A and B of rank 8 have 12,288. One of several updates can be activated (`activate`), and added to W
(`merge_updates`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from llm.adapters.base import Adapter
from llm.adapters.lora_linear import LoRALinear
from llm.adapters.lora_matrix import LoRAMatrix
from llm.adapters.lora_stack import LoRAStack
from llm.adapters.low_rank import LoRALayer
from llm.adapters.targets import Target, choose_targets
from llm.config.errors import suggestion
from llm.nn.recurrent_cell import RecurrentCell
from llm.nn.stacked_linear import StackedLinear


class LoRA(Adapter):
    """An adapter with low-rank updates of every matrix whose name matches; the rest is frozen.

    Matrices are those of linear layers, of experts (an A and a B for each expert) and of LSTM and GRU layers. A pattern
    (`*`, `?`, `[…]`) matches a full name (`blocks.0.attention.output`) or its last word. The fused projection
    `query_key_value` counts as the three layers `query`, `key` and `value`, each with an A and a B of its own, as in
    the paper; its own name selects it as one layer. Only a pattern that contains the word `router` matches routers.

    Use AdamW: Muon orthogonalizes A and B separately, which does not orthogonalize their product. AdamW's
    weight decay pulls towards the base model.

    Args:
        rank: r; memory and capacity grow with it.
        alpha: strength of the updates; scaled by alpha/rank, so that any rank needs the same learning rate.
        dropout: probability for the inputs of the updates.
        targets: patterns of names. The default is everything in the blocks; `*` includes the head;
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
            ValueError: a pattern matches nothing, the model has an adapter of this name, or a target cannot have
                dropout.
        """
        if self.name in adapters(model):
            raise ValueError(
                f"name={self.name}: the model already has an adapter of this name; give another"
            )
        for target in choose_targets(model, self.targets):
            self._put(model, target)
        activate(model, self.name)

    def _put(self, model: nn.Module, target: Target) -> None:
        layer, weight = _adapted(model, target.layer)
        if isinstance(layer, LoRAMatrix) and self.settings["dropout"]:
            raise ValueError(
                f"dropout={self.settings['dropout']}: {target.layer} is updated as a whole, so there are no inputs to "
                "drop; set it to 0"
            )
        layer.add(self.name, target.part, layer.kind(weight, target.rows, **self.settings))


def _adapted(model: nn.Module, name: str) -> tuple[LoRALayer, Tensor]:
    """Return the layer for the updates of a matrix, and the matrix; the layer is put into the model if it is new."""
    owner_name, _, last = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if isinstance(owner, RecurrentCell):
        if not parametrize.is_parametrized(owner, last):
            parametrize.register_parametrization(owner, last, LoRAMatrix())
        matrix: Any = owner.get_submodule(f"parametrizations.{last}")
        return matrix[0], matrix.original
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear | StackedLinear):
        layer = LoRALinear(layer) if isinstance(layer, nn.Linear) else LoRAStack(layer)
        model.set_submodule(name, layer)
    assert isinstance(layer, LoRALinear | LoRAStack)
    return layer, layer.weight


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
        layer.merge(model, name)


def _layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer):
            yield name, module
