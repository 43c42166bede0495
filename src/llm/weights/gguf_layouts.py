"""How llama.cpp stores the tensors of a family, where it differs from the published files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Settings = Mapping[str, Any]


class TensorLayout:
    """Tensors that are stored as they are published. A subclass changes some of them."""

    def stored(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the tensor to store.

        Args:
            name: its name in a GGUF file, such as `blk.0.attn_q.weight`.
            tensor: the published tensor.
            settings: the content of config.json.
        """
        return tensor

    def published(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the published tensor of a stored one: the inverse of `stored`."""
        return tensor


class Interleaved(TensorLayout):
    """Queries and keys whose rotated pairs are adjacent rows.

    The published files have the first halves of all pairs of a head before the second halves.
    """

    def stored(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the rows of each head in the order of the pairs."""
        if (heads := _heads(name, settings)) is None:
            return tensor
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def published(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the rows of each head in the order of the halves."""
        if (heads := _heads(name, settings)) is None:
            return tensor
        return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _heads(name: str, settings: Settings) -> int | None:
    """Return the number of heads of a tensor of queries or keys; None for others."""
    match name.split(".")[2:3]:
        case ["attn_q"]:
            return settings["num_attention_heads"]
        case ["attn_k"]:
            return settings["num_key_value_heads"] or settings["num_attention_heads"]
        case _:
            return None


class ScaledByOneMore(TensorLayout):
    """Norms whose published scales are stored after the addition of 1."""

    def stored(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the scale plus 1, in float32."""
        return tensor.float() + 1 if name.endswith("norm.weight") else tensor

    def published(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the scale minus 1."""
        return tensor - 1 if name.endswith("norm.weight") else tensor


class InputsLast(TensorLayout):
    """Matrices of GPT-2, published as (in, out) and stored as (out, in)."""

    names = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")

    def stored(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the transposed matrix."""
        return tensor.t() if name.endswith(self.names) else tensor

    def published(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the transposed matrix."""
        return self.stored(name, tensor, settings)


class StateSpace(TensorLayout):
    """Mamba-2: the decay itself instead of its logarithm, and other shapes of the small tensors."""

    def stored(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the tensor in llama.cpp's shape."""
        match name.split(".", 2)[-1]:
            case "ssm_a":
                return -tensor.float().exp()[:, None]
            case "ssm_d":
                return tensor[:, None]
            case "ssm_conv1d.weight":
                return tensor.squeeze(1)
            case "ssm_norm.weight":
                return tensor.unflatten(0, (settings["n_groups"], -1))
            case _:
                return tensor

    def published(self, name: str, tensor: Tensor, settings: Settings) -> Tensor:
        """Return the tensor in the published shape."""
        match name.split(".", 2)[-1]:
            case "ssm_a":
                return (-tensor).log().flatten()
            case "ssm_d" | "ssm_norm.weight":
                return tensor.flatten()
            case "ssm_conv1d.weight":
                return tensor.unsqueeze(1)
            case _:
                return tensor
