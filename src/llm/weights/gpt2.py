"""GPT-2's parameters as Hugging Face publishes them, to and from ours."""

from torch import Tensor, nn

from llm.weights.key_map import KeyMap, Rule, State, Transposed

_LAYER = {
    # ours in a block: theirs in a layer, and how the matrix of the two is stored
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.input": "mlp.c_fc",
    "feed_forward.output": "mlp.c_proj",
}


def _rules() -> tuple[Rule, ...]:
    rules = [
        Rule("embedding.weight", ("transformer.wte.weight",)),
        Rule("position.embedding.weight", ("transformer.wpe.weight",)),
        Rule("final_norm.weight", ("transformer.ln_f.weight",)),
        Rule("final_norm.bias", ("transformer.ln_f.bias",)),
        Rule("head.weight", ("lm_head.weight",)),
    ]
    for ours, theirs in _LAYER.items():
        # GPT-2's projections were written as convolutions, whose matrices lie the other way.
        matrix = Rule if ours.endswith("norm") else Transposed
        ours, theirs = f"blocks.{{}}.{ours}", f"transformer.h.{{}}.{theirs}"
        rules.append(matrix(f"{ours}.weight", (f"{theirs}.weight",)))
        rules.append(Rule(f"{ours}.bias", (f"{theirs}.bias",)))
    return tuple(rules)


KEY_MAP = KeyMap(
    rules=_rules(),
    shared={"lm_head.weight": "transformer.wte.weight"},
    # The causal mask and its fill value, which old files keep beside the parameters.
    ignored=("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
)


def from_huggingface(state_dict: State, model: nn.Module | None = None) -> dict[str, Tensor]:
    """The state of our GPT with GPT-2's parts, from that of GPT2LMHeadModel or GPT2Model.

    Args:
        state_dict: their tensors; the published files leave out the prefix `transformer.`.
        model: what the result is for: its names and shapes are checked too.

    Raises:
        ValueError: names all that is missing, left over or wrongly shaped.
    """
    bare = not any(name.startswith("transformer.") for name in state_dict)
    if bare:
        state_dict = {_with_prefix(name): tensor for name, tensor in state_dict.items()}
    return KEY_MAP.to_ours(state_dict, model)


def to_huggingface(state_dict: State) -> dict[str, Tensor]:
    """The state of GPT2LMHeadModel from ours; a tied head is there twice, as in torch's.

    Raises:
        ValueError: names all that is missing or left over.
    """
    return KEY_MAP.to_theirs(state_dict)


def _with_prefix(name: str) -> str:
    return name if name.startswith("lm_head.") else f"transformer.{name}"
