"""Llama's parameters as Hugging Face publishes them, to and from ours."""

from torch import Tensor, nn

from llm.weights.key_map import KeyMap, QueryKeyValue, Rule, State

_THEIRS = "model.layers.{}."
_OURS = "blocks.{}."


def key_map(queries_to_keys: int) -> KeyMap:
    """The rules for a model with so many query heads to a head of keys and values."""
    projections = tuple(f"{_THEIRS}self_attn.{part}_proj.weight" for part in "qkv")
    ours = f"{_OURS}attention.query_key_value.weight"
    alike = {
        "embedding": "model.embed_tokens",
        f"{_OURS}attention_norm": f"{_THEIRS}input_layernorm",
        f"{_OURS}attention.output": f"{_THEIRS}self_attn.o_proj",
        f"{_OURS}feed_forward_norm": f"{_THEIRS}post_attention_layernorm",
        f"{_OURS}feed_forward.gate": f"{_THEIRS}mlp.gate_proj",
        f"{_OURS}feed_forward.input": f"{_THEIRS}mlp.up_proj",
        f"{_OURS}feed_forward.output": f"{_THEIRS}mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    }
    return KeyMap(
        rules=(
            QueryKeyValue(ours, projections, queries_to_keys),
            *(Rule(f"{our}.weight", (f"{their}.weight",)) for our, their in alike.items()),
        ),
        shared={"lm_head.weight": "model.embed_tokens.weight"},
        # The rotary frequencies, which old files keep beside the parameters.
        ignored=(f"{_THEIRS}self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
    )


def from_huggingface(state_dict: State, model: nn.Module | None = None) -> dict[str, Tensor]:
    """The state of our GPT with Llama's parts, from that of LlamaForCausalLM.

    Args:
        state_dict: their tensors by name.
        model: what the result is for: its names and shapes are checked too.

    Raises:
        ValueError: names all that is missing, left over or wrongly shaped.
    """
    return key_map(queries_to_keys=1).to_ours(state_dict, model)


def to_huggingface(state_dict: State) -> dict[str, Tensor]:
    """The state of LlamaForCausalLM from ours; a tied head is there twice, as in torch's.

    Raises:
        ValueError: names all that is missing or left over.
    """
    return key_map(_queries_to_keys(state_dict)).to_theirs(state_dict)


def _queries_to_keys(ours: State) -> int:
    """All heads of queries are read by the output: its columns are their rows."""
    both = (ours.get(f"blocks.0.attention.{name}.weight") for name in ("query_key_value", "output"))
    rows, read = both
    if rows is None or read is None:
        return 1  # the map names what is missing
    queries = read.shape[1]
    return 2 * queries // (rows.shape[0] - queries)
