"""Every option in conf/model composes with every preset and every size."""

from pathlib import Path

import llm.conf
import pytest
import torch
from hydra import compose, initialize_config_module

from llm.config.build import build as build_node
from llm.config.check import check_nodes
from llm.models.size import Size
from llm.nn.feed_forward import GatedFeedForward
from llm.nn.norms import RMSNorm
from llm.nn.positions import Rotary
from llm.nn.stacked_linear import StackedLinear
from llm.planning.cost import counts_of

CONF = Path(llm.conf.__file__).parent
PRESETS = sorted(path.stem for path in CONF.glob("model/*.yaml"))
PARTS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("model/*/*.yaml"))
SIZES = sorted(path.stem for path in CONF.glob("size/*.yaml"))


# Layers of a whole pattern; of two, if one has a single layer with attention, which value_residual cannot add to.
PATTERN_LAYERS = {"gemma2": 2, "gemma3": 6, "olmo3": 4, "qwen3_next": 8, "smollm3": 4}
# Presets with a recurrence in the place of attention, and the options for it.
RECURRENT = ("gated_deltanet", "lstm", "gru", "mamba2")
RECURRENCES = tuple(f"attention={name}" for name in RECURRENT)
# BERT is an encoder: it takes no mask, and no position bias that is defined for earlier keys only.
DECODER_ONLY = ("mask=", "layers=", "embedding=", "head=", "position=alibi", "feed_forward=none")
ATTENTION_ONLY = (
    *("kernel=", "position=rotary", "position=alibi", "layers=local", "layers=nope"),
    "layers=shared_kv",
    *("mask=sliding", "mask=sparse", "mask=window"),
)
TWO_SUBLAYERS = ("residual=parallel", "residual=sandwich_norm", "layers=dense_moe")


def completion(preset: str, part: str) -> list[str]:
    """Return the other parts that a part needs in a preset."""
    if part == "feed_forward=none":
        return ["model/residual=pre_norm"]  # the blocks of some presets need both sublayers
    if part == "kernel=flex" and preset == "bert":
        return ["model.attention.dropout=0"]  # which it refuses
    if preset in RECURRENT and part.startswith(ATTENTION_ONLY):
        return ["model/attention=multi_head", *([] if "kernel" in part else ["model/kernel=fused"])]
    if preset in RECURRENT and part.startswith(TWO_SUBLAYERS):
        return ["model/feed_forward=gelu"]
    return []


# Presets without a twin among the others: the same classes with other numbers fit the same parts.
DISTINCT = [
    *("gpt", "gpt2", "llama", "bert", "gemma3", "gpt_neox", "mixtral", "olmo2", "mamba2", "lstm"),
]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_fits_every_distinct_preset(build, part):
    for preset in DISTINCT:
        if preset == "bert" and part.startswith(DECODER_ONLY):
            continue
        if part in RECURRENCES and preset not in RECURRENT:
            continue  # the preset's kernel and biases are those of attention
        needed = 2 if part == "attention=value_residual" else 1
        num_layers = 6 if part.startswith("layers=") else PATTERN_LAYERS.get(preset, needed)
        others = completion(preset, part)
        model = build(f"model={preset}", f"model/{part}", *others, f"size.num_layers={num_layers}")
        assert model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 97)


@pytest.mark.parametrize("part", [*PARTS, *(f"={preset}" for preset in PRESETS)])
def test_every_part_and_preset_passes_the_check(part):
    is_own = part.startswith("=") or part in RECURRENCES
    preset = part.partition("=")[2] if is_own else "gpt"
    words = [f"+model={preset}", "+size=nano", "size.num_layers=6", "model.vocab_size=97"]
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        config = compose(overrides=[*words, *([] if part.startswith("=") else [f"model/{part}"])])
    check_nodes(config, {"model": torch.nn.Module})


@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds_a_size(size):
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        assert isinstance(build_node(compose(overrides=[f"+size={size}"]).size), Size)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "bert"])
def test_every_preset_fits_every_size(compose_model, preset):
    model = compose_model(f"model={preset}")
    tree = model._get_parent()
    model.vocab_size = 50257
    for size in SIZES if preset in DISTINCT else ["mini", "nano"]:
        with initialize_config_module(config_module="llm.conf", version_base="1.3"):
            tree.size = compose(overrides=[f"+size={size}"]).size
        with torch.device("meta"):
            built = build_node(model)
        kinds, schedule = model.get("layers") or ["all"], built.blocks.schedule
        assert {*schedule} == {*kinds}, "a small model has a layer of each kind"
        cost = counts_of(built, built.context_length)
        assert cost.parameters >= cost.active_parameters > cost.block > 0
        assert cost.flops_per_token > 6 * (cost.active_parameters - cost.embedding)


def test_parts_chosen_on_the_command_line_override_the_preset(build):
    model = build(
        "model=gpt2", "model/position=rotary", "model/norm=rms", "model/feed_forward=swiglu"
    )
    assert isinstance(model.position, Rotary)
    assert all(isinstance(block.feed_forward, GatedFeedForward) for block in model.blocks)
    norms = [model.final_norm, *(block.attention_norm for block in model.blocks)]
    assert all(isinstance(norm, RMSNorm) for norm in norms)


def test_layers_share_only_the_tied_matrix(build):
    model = build("model=gpt", "size=micro")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) - len(dict(model.named_parameters())) == 1
    modules = [module for block in model.blocks for module in block.modules()]
    assert len(modules) == len(set(modules))


def test_model_dropout_sets_every_dropout(build):
    model = build("model=gpt2", "model.dropout=0.3")
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.3}


# Of size nano with 97 tokens, and as many layers as the preset's pattern has.
COUNTS = {
    "gpt": 113_152,
    "gpt2": 110_400,
    "llama": 119_232,
    "gemma2": 113_280,
    "gemma3": 327_680,
    "gpt_neox": 112_512,
    "smollm3": 219_776,
    "bert": 114_913,
    "olmo2": 119_488,
    "olmo3": 226_496,
    "qwen2": 119_616,
    "qwen3": 119_360,
    "mistral": 119_232,
    "mixtral": 341_440,
    "qwen3_moe": 1_634_880,
    "qwen3_next": 6_836_248,
    "gated_deltanet": 123_336,
    "mamba2": 92_684,
    "lstm": 72_448,
    "gru": 56_064,
}
# The presets whose projections have biases, by a part of the projection's name.
BIASED = {"gpt2": "", "gpt_neox": "", "bert": "", "qwen2": "query_key_value"}


def biases(model):
    """Return the projections of the blocks that have biases."""
    blocks = model.blocks.named_modules()
    return {
        name.split(".", 1)[1]: module.bias is not None
        for name, module in blocks
        if isinstance(module, torch.nn.Linear | StackedLinear)
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_options_of_a_part_keep_the_biases_of_the_preset(build, preset):
    biased = BIASED.get(preset, "no projection")
    layers = f"size.num_layers={PATTERN_LAYERS.get(preset, 2)}"
    for group in ["feed_forward"] if preset in RECURRENT else ["feed_forward", "attention"]:
        for path in sorted(CONF.glob(f"model/{group}/*.yaml")):
            if path.stem in ("no_bias", "none", "latent", *RECURRENT):
                continue
            for name, has_bias in biases(
                build(f"model={preset}", f"model/{group}={path.stem}", layers)
            ).items():
                assert has_bias == (biased in name), path.stem
    found = biases(
        build(f"model={preset}", "model/attention=no_bias", "model/feed_forward=gelu", layers)
    )
    assert not found["attention.query_key_value"]
    assert not found["attention.output"]
    assert found["feed_forward.output"] == (biased in "feed_forward.output")


@pytest.mark.parametrize(
    ("preset", "expected"), [("gpt2", {"down", "output"}), ("qwen2", {"down"}), ("llama", set())]
)
def test_latent_attention_has_biases_before_the_latent_and_after_the_heads(build, preset, expected):
    """As in DeepSeek-V2, the projections of queries and from the latent have none."""
    found = biases(build(f"model={preset}", "model/attention=latent"))
    own = {name.removeprefix("attention.") for name in found if name.startswith("attention.")}
    assert own == {"query", "down", "up", "output"}
    assert {name for name in own if found[f"attention.{name}"]} == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_recorded_number_of_parameters(build, preset):
    model = build(f"model={preset}", f"size.num_layers={PATTERN_LAYERS.get(preset, 2)}")
    assert sum(p.numel() for p in model.parameters()) == COUNTS[preset]
