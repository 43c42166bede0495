"""BERT's weights (Devlin et al. 2019), as Hugging Face publishes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from llm.checkpoints.lazy_tensor import LazyTensor
from llm.config.build import config_errors_at
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.wordpiece import read_wordpiece
from llm.weights.huggingface import (
    Folder,
    HuggingFaceFolder,
    HuggingFaceWeights,
    Settings,
    download,
    positive,
    unsupported,
)
from llm.weights.key_map import KeyMap, QueryKeyValue, Rule

SIZES = {
    "size.num_layers": "num_hidden_layers",
    "size.num_heads": "num_attention_heads",
    "size.dim": "hidden_size",
    "size.context_length": "max_position_embeddings",
    "model.position.context_length": "max_position_embeddings",
    "model.vocab_size": "vocab_size",
    "model.num_segments": "type_vocab_size",
    "model.feed_forward.hidden_dim": "intermediate_size",
}
# What config.json calls an activation, our option of it in a block, and our function in the head.
ACTIVATIONS = {
    "gelu": ("gelu_exact", "gelu"),
    "gelu_new": ("gelu", "gelu_tanh"),
    "relu": ("relu", "relu"),
    "silu": ("silu", "silu"),
}
_THEIRS = "bert.encoder.layer.{}."
_ALIKE = {
    # by our names, what is stored alike
    "embedding_norm": "bert.embeddings.LayerNorm",
    "blocks.{}.attention.output": f"{_THEIRS}attention.output.dense",
    "blocks.{}.attention_norm": f"{_THEIRS}attention.output.LayerNorm",
    "blocks.{}.feed_forward.input": f"{_THEIRS}intermediate.dense",
    "blocks.{}.feed_forward.output": f"{_THEIRS}output.dense",
    "blocks.{}.feed_forward_norm": f"{_THEIRS}output.LayerNorm",
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
}
_EMBEDDINGS = {"embedding": "word", "position.embedding": "position", "segment": "token_type"}


@dataclass(frozen=True)
class Tied(Rule):
    """One tensor of ours that they name twice; the first name is of the one that they compute with."""

    def split(self, ours: Tensor) -> list[Tensor]:
        """The same under each name."""
        return [ours] * len(self.theirs)


def _rules() -> tuple[Rule, ...]:
    rules = [
        Rule(f"{ours}.weight", (f"bert.embeddings.{theirs}_embeddings.weight",))
        for ours, theirs in _EMBEDDINGS.items()
    ]
    rules.append(Rule("head.weight", ("cls.predictions.decoder.weight",)))
    rules.append(Tied("head.bias", ("cls.predictions.decoder.bias", "cls.predictions.bias")))
    for kind in ("weight", "bias"):
        parts = tuple(f"{_THEIRS}attention.self.{n}.{kind}" for n in ("query", "key", "value"))
        rules.append(QueryKeyValue(f"blocks.{{}}.attention.query_key_value.{kind}", parts))
        rules += [Rule(f"{our}.{kind}", (f"{their}.{kind}",)) for our, their in _ALIKE.items()]
    return tuple(rules)


class BERTMap(KeyMap):
    """BERT's names, and those of older files."""

    def load(self, theirs: Mapping[str, LazyTensor], model: nn.Module) -> None:
        """Fill a model of ours, in place, with their tensors; a model without its head needs none for it.

        Raises:
            ConfigError: names all that is missing, left over or wrongly shaped, before anything is read.
        """
        theirs = {_todays(name): stored for name, stored in theirs.items()}
        if isinstance(model.head, nn.Identity):
            theirs = {n: stored for n, stored in theirs.items() if not n.startswith("cls.")}
            body = tuple(rule for rule in self.rules if not rule.ours.startswith("head."))
            KeyMap(body, {}, self.ignored, self.prefix).load(theirs, model)
        else:
            super().load(theirs, model)


def _todays(name: str) -> str:
    """A norm's parameters were once called gamma and beta."""
    return re.sub(
        r"LayerNorm\.beta$", "LayerNorm.bias", name.replace("LayerNorm.gamma", "LayerNorm.weight")
    )


# What guessed, while BERT was pretrained, whether one sentence follows another.
_NEXT_SENTENCE = tuple(
    f"{part}.{kind}"
    for part in ("bert.pooler.dense", "cls.seq_relationship")
    for kind in ("weight", "bias")
)

KEY_MAP = BERTMap(
    rules=_rules(),
    shared={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=("bert.embeddings.position_ids", *_NEXT_SENTENCE),
    prefix="bert.",
)


@dataclass(frozen=True)
class BERTFolder(HuggingFaceFolder):
    """A folder whose tokenizer is BERT's."""

    def tokenizer(self) -> Tokenizer:
        """The pieces of words that the folder lists.

        Raises:
            ConfigError: it lists none, or they cannot be read.
        """
        with config_errors_at("weights.path"):
            return read_wordpiece(self.path)


@dataclass(frozen=True)
class BERTWeights(HuggingFaceWeights):
    """BERT out of a folder or the hub, such as google-bert/bert-base-uncased.

    Dropout is not taken from config.json: it belongs to training, and `model.dropout` sets it.
    """

    model_type: ClassVar[str] = "bert"
    expected: ClassVar[Mapping[str, Any]] = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }

    @cached_property
    def folder(self) -> Folder:
        """The folder, fetched if it is not there."""
        path = Path(self.path)
        return BERTFolder(path if path.is_dir() else download(self.path))

    def architecture(self, settings: Settings) -> tuple[list[str], Settings]:
        """BERT's parts, with another activation where config.json names one."""
        if (name := settings.get("hidden_act", "gelu")) not in ACTIVATIONS:
            raise unsupported("hidden_act", name, choices=ACTIVATIONS)
        feed_forward, activation = ACTIVATIONS[name]
        return ["+model=bert", "+size=124m", f"model/feed_forward={feed_forward}"], {
            **positive(settings, SIZES),
            "model.activation._target_": f"llm.nn.activations.{activation}",
            "model.norm.eps": settings.get("layer_norm_eps", 1e-12),
            "model.tie_weights": settings.get("tie_word_embeddings", True),
        }

    def key_map(self, settings: Settings) -> KeyMap:
        """BERT's names."""
        return KEY_MAP
