"""BERT's weights (Devlin et al. 2019), as Hugging Face publishes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from llm.config.build import config_errors_at
from llm.tokenizers.base import Tokenizer
from llm.tokenizers.wordpiece import read_wordpiece
from llm.weights.huggingface import Architecture, HuggingFaceWeights, Settings, positive, supported
from llm.weights.key_map import KeyMap, QueryKeyValue, Rule
from llm.weights.model_parts import NoCounterpartError

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
# Activations by their names in config.json: our option for the blocks, and our function for the head.
ACTIVATIONS = {
    "gelu": ("gelu_exact", "gelu"),
    "gelu_new": ("gelu", "gelu_tanh"),
    "relu": ("relu", "relu"),
    "silu": ("silu", "silu"),
}
_THEIRS = "bert.encoder.layer.{}."
# Modules that are stored in the same way: our name, published name.
_ALIKE = {
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
    """One tensor of ours that is published under two names; the first is read."""

    def split(self, ours: Tensor) -> list[Tensor]:
        """Return the tensor once per name."""
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


# The head of next-sentence prediction.
_NEXT_SENTENCE = tuple(
    f"{part}.{kind}"
    for part in ("bert.pooler.dense", "cls.seq_relationship")
    for kind in ("weight", "bias")
)

KEY_MAP = KeyMap(
    rules=_rules(),
    shared={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=("bert.embeddings.position_ids", *_NEXT_SENTENCE),
    prefix="bert.",
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)


@dataclass(frozen=True)
class BERTWeights(HuggingFaceWeights):
    """BERT from a folder or the hub, such as google-bert/bert-base-uncased.

    `model.dropout` sets the dropout, not config.json.
    """

    model_type: ClassVar[str] = "bert"
    title: ClassVar[str] = "BERT"
    sizes: ClassVar[Mapping[str, str]] = SIZES
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
    }
    expected: ClassVar[Mapping[str, Sequence[Any]]] = {
        "position_embedding_type": ["absolute"],
        "is_decoder": [False],
        "add_cross_attention": [False],
    }
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *("initializer_range", "use_cache", "classifier_dropout"),
            *("hidden_dropout_prob", "attention_probs_dropout_prob"),
        }
    )

    @classmethod
    def architecture(cls, settings: Settings) -> Architecture:
        """Return BERT's architecture with the activation of config.json."""
        feed_forward, activation = supported(settings, "hidden_act", ACTIVATIONS, default=None)
        return Architecture(
            ["+model=bert", "+size=124m", f"model/feed_forward={feed_forward}"],
            {
                **positive(settings, cls.sizes),
                "model.activation._target_": f"llm.nn.activations.{activation}",
                "model.norm.eps": settings["layer_norm_eps"],
                "model.tie_weights": settings["tie_word_embeddings"],
            },
        )

    @classmethod
    def key_map(cls, settings: Settings) -> KeyMap:
        """Return the rules for BERT's tensors."""
        return KEY_MAP

    @classmethod
    def describe(cls, model: nn.Module) -> Settings:
        """Refuse every model: an encoder is not exported."""
        raise NoCounterpartError("model", model)

    def tokenizer(self) -> Tokenizer:
        """Return the WordPiece tokenizer of the folder.

        Raises:
            ConfigError: its files are missing or cannot be read.
        """
        with config_errors_at("weights.path"):
            return read_wordpiece(self.folder.path)
