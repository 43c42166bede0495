"""Adapters that train some layers of the model and add nothing."""

from torch import nn

from llm.adapters.base import Adapter


class LastBlock(Adapter):
    """An adapter that trains the last block, the final norm and new parameters (Raschka 2024, chapter 6).

    A pretrained head stays frozen. The argument is that of `Adapter`.
    """

    def adapt(self, model: nn.Module) -> None:
        """Unfreeze the last of the `blocks`, and `final_norm`.

        Raises:
            ValueError: the model has no blocks.
        """
        parts = {name.rpartition(".")[-1]: module for name, module in model.named_modules()}
        blocks = parts.get("blocks")
        if not isinstance(blocks, nn.ModuleList):
            raise ValueError(
                f"adapter=last_block needs blocks, and {type(model).__name__} has none; choose adapter=head"
            )
        for part in (blocks[-1], parts.get("final_norm")):
            if part is not None:
                part.requires_grad_(requires_grad=True)


class Head(Adapter):
    """An adapter that trains the head and new parameters: a linear probe (Alain and Bengio 2016).

    A tied head is also the embedding, which is then trained too. The argument is that of `Adapter`.
    """

    def adapt(self, model: nn.Module) -> None:
        """Unfreeze `head`.

        Raises:
            ValueError: the model has no head with parameters.
        """
        head = getattr(model, "head", None)
        if not isinstance(head, nn.Module) or not any(True for _ in head.parameters()):
            raise ValueError(
                f"adapter=head needs a head, and {type(model).__name__} has none; choose adapter=lora"
            )
        head.requires_grad_(requires_grad=True)
