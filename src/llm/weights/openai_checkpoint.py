"""GPT-2 as released by OpenAI in 2019: a TensorFlow checkpoint and the files of its tokenizer."""

import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from llm.checkpoints.lazy_tensor import LazyTensor
from llm.config.build import config_errors_at
from llm.files import read_object
from llm.tokenizers.base import Tokenizer
from llm.weights.huggingface import Folder, Settings
from llm.weights.tensor_bundle import in_tensor_bundle
from llm.weights.tokenizer_files import read_vocabulary

# Keys of hparams.json by those of Hugging Face's config.json.
SIZES = {
    "vocab_size": "n_vocab",
    "n_positions": "n_ctx",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}
CHECKPOINT = "model.ckpt"
TOKENIZER = ("encoder.json", "vocab.bpe")


class OpenAIFolder(Folder):
    """A folder with hparams.json, model.ckpt.index, model.ckpt.data-…, encoder.json and vocab.bpe."""

    @cached_property
    def published(self) -> None:
        """None, because the format has no settings."""
        return None

    @property
    def settings(self) -> Settings:
        """The sizes by the keys of Hugging Face's config.json.

        Raises:
            ConfigError: hparams.json cannot be read.
        """
        with config_errors_at("weights.path"):
            hparams = read_object(self.path / "hparams.json")
        sizes = {theirs: hparams.get(name) for theirs, name in SIZES.items()}
        return {"model_type": "gpt2", **sizes}

    @property
    def files(self) -> list[Path]:
        """The files of the checkpoint, the sizes and the tokenizer."""
        names = ("hparams.json", *TOKENIZER)
        described = [self.path / name for name in names if (self.path / name).is_file()]
        return sorted([*described, *self.path.glob(f"{CHECKPOINT}.*")])

    def tensors(self) -> dict[str, LazyTensor]:
        """Return the parameters by Hugging Face's names.

        Raises:
            ConfigError: the checkpoint is missing or damaged.
        """
        stored = in_tensor_bundle(self.path / CHECKPOINT)
        return {_name(name): _without_first_axis(tensor) for name, tensor in stored.items()}

    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer of encoder.json and vocab.bpe; None if one is missing.

        Raises:
            ConfigError: the two do not fit each other.
        """
        with config_errors_at("weights.path"):
            return read_vocabulary(*(self.path / name for name in TOKENIZER))


def _name(name: str) -> str:
    """Return `h.0.attn.c_attn.weight` for `model/h0/attn/c_attn/w`."""
    words = re.sub(r"^model/(?:h(\d+)/)?", lambda m: f"h/{m[1]}/" if m[1] else "", name).split("/")
    if words[-1] in ("wte", "wpe"):
        return f"{words[-1]}.weight"
    last = {"w": "weight", "g": "weight", "b": "bias"}.get(words[-1], words[-1])
    return ".".join([*words[:-1], last])


def _without_first_axis(stored: LazyTensor) -> LazyTensor:
    """Return the matrix (in, out) of a projection that is stored as a convolution (1, in, out)."""
    if len(stored.shape) != 3 or stored.shape[0] != 1:
        return stored
    return replace(stored, shape=stored.shape[1:], read=lambda: stored.read().squeeze(0))
