"""How large a model is, apart from what it is made of."""

from dataclasses import dataclass

from llm.nn.heads import group_size, head_width


@dataclass(frozen=True)
class Size:
    """The numbers that models of any kind take their own from.

    Attributes:
        num_layers: number of blocks.
        num_heads: number of query heads.
        dim: width C of the model.
        context_length: tokens that a training example holds, and the most that are attended to.
        num_kv_heads: number of key and value heads, where attention groups them; None means all.

    Raises:
        ValueError: a number is not positive, or the heads do not divide what they share.
    """

    num_layers: int
    num_heads: int
    dim: int
    context_length: int
    num_kv_heads: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        head_width(self.dim, self.num_heads)
        if self.num_kv_heads is not None:
            group_size(self.num_heads, self.num_kv_heads)
