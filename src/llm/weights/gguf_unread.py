"""Values of a GGUF file that no family here reads: one that could change the result is refused by its name."""

from collections.abc import Collection, Mapping
from typing import Any

from llm.config.errors import ConfigError
from llm.weights.huggingface import Settings

# They describe the file, or what llama.cpp does not use in the families here.
WITHOUT_EFFECT = frozenset(
    {
        *("vocab_size", "feed_forward_length", "attention.head_count", "tensor_data_layout"),
        *("rope.scaling.finetuned", "expert_weights_norm"),
    }
)
# The supported value; 0, false and "none" are those of a part that a model does not have.
SUPPORTED = {
    "attention.causal": True,
    "expert_gating_func": 1,  # softmax
    **dict.fromkeys(("expert_weights_scale", "logit_scale", "embedding_scale"), 1.0),
    **dict.fromkeys(("rope.scale_linear", "rope.scaling.attn_factor"), 1.0),
}
# They are the width of a head.
HEAD_DIM = frozenset(
    f"{name}{suffix}"
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    for suffix in ("", "_swa")
)


def refuse_unread(
    values: Mapping[str, Any], *, read: Collection[str], arch: str, settings: Settings
) -> None:
    """Check the values that nothing reads.

    Args:
        values: the values of the architecture, without its name.
        read: the keys that the family reads.
        arch: the architecture.
        settings: the config.json of what was read.

    Raises:
        ConfigError: one of them may change what the model computes.
    """
    heads = settings.get("num_attention_heads")
    dim = settings.get("head_dim") or (heads and settings["hidden_size"] // heads)
    for key, value in values.items():
        if key in read or key in WITHOUT_EFFECT:
            continue
        supported = dim if key in HEAD_DIM else SUPPORTED.get(key)
        is_absent = value in (0, "none") and supported is not True
        if not is_absent and value != supported:
            only = "" if supported is None else f", only {supported}"
            raise ConfigError(
                f"weights.path: {arch}.{key}={value!r:.60} is not supported{only}; use a file without it"
            )
