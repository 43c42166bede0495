"""The families that llama.cpp runs: their values and tensors in a GGUF file, and those of the published files.

The names of tensors are those of the library `gguf`. A family of `config.json` has one entry here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm.config.errors import ConfigError
from llm.weights.families import Match
from llm.weights.gguf_file import GGUFFile
from llm.weights.gguf_layouts import (
    InputsLast,
    Interleaved,
    ScaledByOneMore,
    StateSpace,
    TensorLayout,
)
from llm.weights.gguf_library import gguf_library
from llm.weights.gguf_rotation import (
    FREQUENCIES,
    ROTATION,
    describe_rope,
    read_rope,
    read_ropes,
)
from llm.weights.gguf_unread import refuse_unread
from llm.weights.huggingface import Settings
from llm.weights.layer_windows import FULL, LOCAL

Values = dict[str, Any]

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
# Values besides the sizes that some family reads; llama.cpp ignores them in the others.
READ = {*ROTATION, WINDOW, PATTERN, "final_logit_softcapping", "ssm.inner_size"}
# Keys of config.json, and values of a GGUF file without the name of the architecture.
DECODER = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
EXPERTS = {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
MOE = {
    **{ours: theirs for ours, theirs in DECODER.items() if ours != "intermediate_size"},
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
GPT2 = {
    "n_positions": "context_length",
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
MAMBA2 = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "conv_kernel": "ssm.conv_kernel",
    "state_size": "ssm.state_size",
    "num_heads": "ssm.time_step_rank",
    "n_groups": "ssm.group_count",
    "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
}
SILU = {"hidden_act": "silu"}

Demands = Mapping[str, Any]


@dataclass(frozen=True)
class GGUFFamily:
    """A family in llama.cpp.

    Attributes:
        arch: its architecture.
        keys: keys of config.json, and the values that contain them.
        required: keys of config.json that have one value in llama.cpp. A function computes it from the others.
        layout: how its tensors are stored.
        describe: returns the other values for a config.json, such as those of the rotation.
        read: returns the other keys of config.json for the values of a file and the names of its tensors.
        needs_output: whether llama.cpp needs the matrix of the head, even if it is that of the embedding.
    """

    arch: str
    keys: Mapping[str, str]
    required: Demands
    layout: TensorLayout
    describe: Callable[[Settings], Values]
    read: Callable[[GGUFFile, Values], Settings]
    needs_output: bool = False

    def names(self, published: Iterable[str], *, num_layers: int) -> dict[str, list[str]]:
        """Return the names of published tensors by the names of the stored ones: several for experts.

        Raises:
            ConfigError: llama.cpp has no such tensor.
        """
        gguf = gguf_library()
        (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch)
        known = gguf.get_tensor_name_map(arch, num_layers)
        names: dict[str, list[str]] = {}
        for name in published:
            one = re.sub(r"\.experts\.\d+\.", ".experts.", name).replace(
                ".dt_bias", ".dt_proj.bias"
            )
            stored = known.get_name(one, try_suffixes=(".weight", ".bias"))
            if stored is None:
                raise ConfigError(
                    f"weights.path: llama.cpp has no counterpart of {name}; export format=folder"
                )
            names.setdefault(stored, []).append(name)
        return names


def _rotary(settings: Settings) -> Values:
    """Return the values of one rotation in all layers."""
    values = describe_rope(settings["rope_parameters"])
    return {**values, "attention.value_length": settings["head_dim"]}


def _rotary_llama(settings: Settings) -> Values:
    """Return the values of one rotation, and the width that rotates."""
    size = {"vocab_size": settings["vocab_size"], "rope.dimension_count": settings["head_dim"]}
    return {**_rotary(settings), **size}


def _windows(settings: Settings) -> Values:
    """Return the values of two rotations, and of the windows."""
    ropes, types = settings["rope_parameters"], settings["layer_types"]
    local = ropes[LOCAL] if LOCAL in types else None
    values = {"attention.value_length": settings["head_dim"], **describe_rope(ropes[FULL], local)}
    if local is not None:
        values |= {WINDOW: settings["sliding_window"], PATTERN: [kind == LOCAL for kind in types]}
    return values


def _gemma3(settings: Settings) -> Values:
    softcap = settings["final_logit_softcapping"]
    bound = {} if softcap is None else {"final_logit_softcapping": float(softcap)}
    return {**_windows(settings), **bound}


def _mamba2(settings: Settings) -> Values:
    # llama.cpp requires the last two, and does not use them.
    width = settings["num_heads"] * settings["head_dim"]
    return {"ssm.inner_size": width, "feed_forward_length": 0, "attention.head_count": 0}


def _read_rotary(file: GGUFFile, values: Values) -> Settings:
    factors = file.tensors.get(FREQUENCIES)
    rope = read_rope(values, None if factors is None else factors.lazy().read())
    return {"rope_parameters": rope, **_read_biases(file)}


def _read_qwen2(file: GGUFFile, values: Values) -> Settings:
    return {**_read_rotary(file, values), "use_sliding_window": False}


def _read_qwen3_moe(file: GGUFFile, values: Values) -> Settings:
    return {**_read_qwen2(file, values), "norm_topk_prob": True}


def _read_windows(file: GGUFFile, values: Values, *, every: int, local_theta: float) -> Settings:
    """Return the keys of two rotations and of the windows, which every layer but one in `every` has by default."""
    number, size = values.get("block_count"), values.get(WINDOW)
    given = values.get(PATTERN, every)
    if not isinstance(number, int):
        return {}  # reported with the sizes
    if isinstance(given, list):
        is_local = [bool(each) for each in given]
    else:
        is_local = [bool((n + 1) % given) if given else True for n in range(number)]
    if len(is_local) != number:
        raise ConfigError(
            f"weights.path: {PATTERN} is for {len(is_local)} of {number} layers; download the file again"
        )
    return {
        "rope_parameters": read_ropes(values, local_theta=local_theta),
        "sliding_window": size,
        "layer_types": [LOCAL if size and local else FULL for local in is_local],
        **_read_biases(file),
    }


def _read_olmo3(file: GGUFFile, values: Values) -> Settings:
    return _read_windows(file, values, every=4, local_theta=values.get("rope.freq_base", 1e4))


def _read_gemma3(file: GGUFFile, values: Values) -> Settings:
    settings = _read_windows(file, values, every=6, local_theta=1e4)
    softcap = {"final_logit_softcapping": values.get("final_logit_softcapping")}
    known = {"head_dim": values.get("attention.key_length"), **_sizes(values)}
    return {**settings, **softcap, "query_pre_attn_scalar": _gemma3_score_dim(known)}


def _read_smollm3(file: GGUFFile, values: Values) -> Settings:
    known = _sizes(values)
    return {**_read_rotary(file, values), "no_rope_layers": _rotates_smollm3(known)}


def _read_mamba2(file: GGUFFile, values: Values) -> Settings:
    width, heads, dim = (
        values.get(key) for key in ("ssm.inner_size", "ssm.time_step_rank", "embedding_length")
    )
    sizes = [each for each in (width, heads, dim) if isinstance(each, int) and each > 0]
    if len(sizes) < 3 or sizes[0] % sizes[1] or sizes[0] % sizes[2]:
        raise ConfigError(
            f"weights.path: the width {width} of Mamba-2's layers is not a multiple of {heads} heads and of the "
            f"model's width {dim}; download the file again"
        )
    return {"head_dim": sizes[0] // sizes[1], "expand": sizes[0] // sizes[2]}


def _read_nothing(file: GGUFFile, values: Values) -> Settings:
    return {}


def _describe_nothing(settings: Settings) -> Values:
    return {}


def _read_biases(file: GGUFFile) -> Settings:
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _sizes(values: Values) -> Settings:
    return {ours: values.get(theirs) for ours, theirs in DECODER.items() if theirs in values}


def _no_window(settings: Settings) -> Any:
    """Return the window if it is as long as the context, and otherwise None."""
    window = settings["sliding_window"]
    return window if window is not None and window >= settings["max_position_embeddings"] else None


def _shared_dim(settings: Settings) -> int:
    return settings["hidden_size"] // settings["num_attention_heads"]


def _gemma3_score_dim(settings: Settings) -> Any:
    """Return the width that scales the scores; that of the model with 27 billion parameters is another one."""
    is_largest = settings.get("num_hidden_layers") == 62
    return _shared_dim(settings) if is_largest else settings["head_dim"]


def _rotates_smollm3(settings: Settings) -> list[int]:
    number = settings.get("num_hidden_layers")
    return [int((n + 1) % 4 != 0) for n in range(number)] if isinstance(number, int) else []


NO_BIAS = {"attention_bias": False}
QWEN2 = {**SILU, "use_sliding_window": False}
SHARED_DIM = {"head_dim": _shared_dim}
LLAMA = GGUFFamily(
    arch="llama",
    keys=DECODER,
    required=SILU,
    layout=Interleaved(),
    describe=_rotary_llama,
    read=_read_rotary,
)
# llama.cpp runs it as Llama, and ignores its window.
MISTRAL = replace(LLAMA, required={**SILU, "sliding_window": _no_window})
QWEN3 = GGUFFamily(
    arch="qwen3",
    keys=DECODER,
    required={**QWEN2, **NO_BIAS},
    layout=TensorLayout(),
    describe=_rotary,
    read=_read_qwen2,
)
OLMO2 = GGUFFamily(
    arch="olmo2",
    keys=DECODER,
    required={**SILU, **NO_BIAS, **SHARED_DIM},
    layout=TensorLayout(),
    describe=_rotary,
    read=_read_rotary,
    needs_output=True,
)
GGUF_FAMILIES = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mixtral": replace(MISTRAL, keys=DECODER | EXPERTS),
    "qwen2": replace(QWEN3, arch="qwen2", required={**QWEN2, **SHARED_DIM}),
    "qwen3": QWEN3,
    "qwen3_moe": replace(
        QWEN3,
        arch="qwen3moe",
        keys=MOE,
        required={**QWEN2, **NO_BIAS, "norm_topk_prob": True},
        read=_read_qwen3_moe,
    ),
    "olmo2": OLMO2,
    "olmo3": replace(OLMO2, describe=_windows, read=_read_olmo3),
    "gemma3_text": GGUFFamily(
        arch="gemma3",
        keys=DECODER,
        required={
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": _gemma3_score_dim,
            "attn_logit_softcapping": None,
            **NO_BIAS,
        },
        layout=ScaledByOneMore(),
        describe=_gemma3,
        read=_read_gemma3,
    ),
    "smollm3": replace(
        LLAMA,
        arch="smollm3",
        required={**SILU, **NO_BIAS, "mlp_bias": False, "no_rope_layers": _rotates_smollm3},
        read=_read_smollm3,
    ),
    "gpt2": GGUFFamily(
        arch="gpt2",
        keys=GPT2,
        required={"activation_function": "gelu_new"},
        layout=InputsLast(),
        describe=_describe_nothing,
        read=_read_nothing,
    ),
    "mamba2": GGUFFamily(
        arch="mamba2",
        keys=MAMBA2,
        required={"use_bias": False, "n_groups": 1},
        layout=StateSpace(),
        describe=_mamba2,
        read=_read_mamba2,
    ),
}


def family_for_export(match: Match) -> GGUFFamily:
    """Return the family in llama.cpp of a model.

    Raises:
        ConfigError: llama.cpp does not have the family, or computes a part of it in another way.
    """
    found = GGUF_FAMILIES.get(match.family.model_type)
    if found is None:
        raise ConfigError(
            f"weights.path: {match.family.title} is not exported as GGUF, only {', '.join(GGUF_FAMILIES)}; "
            "export format=folder"
        )
    for key, value in found.required.items():
        has = match.settings.get(key, match.family.defaults.get(key))
        needs = value(match.settings) if callable(value) else value
        if has != needs:
            hint = (
                "train with model/feed_forward=swiglu, or "
                if key == "hidden_act" and has == "relu"
                else ""
            )
            raise ConfigError(
                f"weights.path: {match.family.title} with {key}={has} is not what llama.cpp computes, which has "
                f"{key}={needs}; {hint}export format=folder"
            )
    return found


def gguf_values(match: Match, family: GGUFFamily) -> Values:
    """Return the values of a model, without the name of the architecture."""
    settings = match.settings
    sizes = {theirs: settings[ours] for ours, theirs in family.keys.items()}
    return {**sizes, **family.describe(settings)}


def settings_in(file: GGUFFile) -> Settings:
    """Return the config.json of a file.

    Raises:
        ConfigError: the architecture is unknown, or a value is missing or has a wrong type.
    """
    arch = file.values.get("general.architecture")
    values = {
        key.removeprefix(f"{arch}."): value
        for key, value in file.values.items()
        if key.startswith(f"{arch}.")
    }
    model_type = _model_type(arch, values)
    if model_type is None:
        known = ", ".join(dict.fromkeys(family.arch for family in GGUF_FAMILIES.values()))
        raise ConfigError(
            f"weights.path: {file.path} is of the architecture {arch!r:.60}, which is not supported; those supported "
            f"are {known}"
        )
    family = GGUF_FAMILIES[model_type]
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ConfigError(
            f"weights.path: {file.path} has no tensor token_embd.weight; download the file again"
        )
    settings = {**_read_keys(family, values), **family.read(file, values)}
    read = {*family.keys.values(), *READ}
    refuse_unread(values, read=read, arch=family.arch, settings=settings)
    return {
        "model_type": model_type,
        **settings,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _read_keys(family: GGUFFamily, values: Values) -> Settings:
    """Return the keys of config.json that values contain, and those that have one value in llama.cpp."""
    settings: Settings = {ours: values[key] for ours, key in family.keys.items() if key in values}
    for ours, value in settings.items():
        if type(value) not in (int, float):
            raise ConfigError(
                f"weights.path: {family.arch}.{family.keys[ours]}={value!r:.60} is not a number; download it again"
            )
    if "num_key_value_heads" in family.keys:
        settings.setdefault("num_key_value_heads", settings.get("num_attention_heads"))
        settings.setdefault("head_dim", None)
    for key, value in family.required.items():
        if not callable(value) and settings.setdefault(key, value) != value:
            raise ConfigError(
                f"weights.path: {family.arch}.{family.keys[key]}={settings[key]} is not supported, only {value}"
            )
    return settings


def _model_type(arch: Any, values: Values) -> str | None:
    """Return the family of config.json for an architecture of llama.cpp, which may run several."""
    if arch == "llama" and values.get("expert_count"):
        return "mixtral"
    if arch == "olmo2" and values.get(WINDOW):
        return "olmo3"
    return next((name for name, family in GGUF_FAMILIES.items() if family.arch == arch), None)
