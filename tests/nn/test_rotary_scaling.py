"""Scalings of rotary frequencies, compared with those of transformers."""

import math

import pytest
import torch
from float64_mode import Float64
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llm.nn.positions import Llama3Scaling as Llama3ScalingOfEarlierRuns
from llm.nn.positions import Rotary, rotate
from llm.nn.rotary_scaling import LinearScaling, Llama3Scaling, NTKScaling, YaRNScaling

X = torch.zeros(1, 3, 8, dtype=torch.float64)
HEAD_DIM, THETA, CONTEXT = 64, 10_000.0, 512

# Our scaling, the parameters of transformers, and the length for which it computes the frequencies.
PAIRS = {
    "linear": (LinearScaling(factor=4.0), {"rope_type": "linear", "factor": 4.0}, None),
    # transformers grows theta with the text; a text of four contexts has the theta of factor 4.
    "ntk": (NTKScaling(factor=4.0), {"rope_type": "dynamic", "factor": 1.0}, 4 * CONTEXT),
    "yarn": (
        YaRNScaling(factor=4.0, context_length=CONTEXT),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT},
        None,
    ),
    "yarn-fast": (
        YaRNScaling(factor=40.0, beta_fast=5.0, beta_slow=3.0, context_length=32),
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 5.0,
            "beta_slow": 3.0,
        },
        None,
    ),
    "llama3": (
        Llama3Scaling(factor=4.0, context_length=CONTEXT),
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": CONTEXT,
        },
        None,
    ),
}


def config(**parameters) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": THETA, **parameters},
    )


@pytest.mark.parametrize(("scaling", "parameters", "length"), PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_frequencies_and_amplitude_equal_those_of_transformers(
    scaling, parameters, length, fraction
):
    theirs = config(**parameters, partial_rotary_factor=fraction)
    with Float64():
        frequencies, amplitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](
            theirs, "cpu", seq_len=length
        )
    rotary = Rotary(2 * HEAD_DIM, 2, theta=THETA, scaling=scaling, fraction=fraction)
    # The angles of position 1 are the frequencies; those of position 4,000 are beyond the context.
    for position in (1, 4000):
        cos, sin = rotary.rotation(X[:, :1], slice(position, position + 1))
        expected = position * frequencies
        torch.testing.assert_close(cos[0, 0], amplitude * expected.cos(), rtol=0, atol=1e-10)
        torch.testing.assert_close(sin[0, 0], amplitude * expected.sin(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", PAIRS)
def test_slowest_pair_is_slowed_by_the_factor_and_the_fastest_only_if_linear(kind):
    scaling = PAIRS[kind][0]
    frequencies = THETA ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    ratio = scaling(frequencies) / frequencies
    assert math.isclose(ratio[-1], 1 / scaling.factor)
    assert math.isclose(ratio[0], 1 / scaling.factor if kind == "linear" else 1)
    assert (ratio.diff() <= 1e-12).all()


def test_yarn_temperature_multiplies_the_scores():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 3, 8, dtype=torch.float64)
    scaling = YaRNScaling(factor=4.0)

    class Cold(YaRNScaling):
        amplitude = 1.0

    scores = []
    for each in (scaling, Cold(factor=4.0)):
        rotation = Rotary(8, 1, scaling=each).rotation(X, slice(0, 3))
        scores.append(rotate(query, rotation) @ rotate(key, rotation).mT)
    torch.testing.assert_close(scores[0], scores[1] * (0.1 * math.log(4) + 1) ** 2)


def test_llama3_scaling_slows_low_frequencies_and_keeps_high_ones():
    """Up to one turn in the old context the factor applies fully, from four turns on not at all."""
    turns = torch.tensor([0.2, 1.0, 2.5, 4.0, 30.0])
    frequencies = turns * 2 * math.pi / 8192
    slower = Llama3Scaling(factor=8.0)(frequencies) / frequencies
    torch.testing.assert_close(slower, torch.tensor([1 / 8, 1 / 8, (1 + 1 / 8) / 2, 1.0, 1.0]))


@pytest.mark.parametrize("kind", [LinearScaling, NTKScaling, YaRNScaling, Llama3Scaling])
def test_scaling_factor_of_one_changes_nothing(kind):
    plain, scaled = Rotary(8, 2), Rotary(8, 2, scaling=kind(factor=1.0))
    for left, right in zip(
        plain.rotation(X, slice(0, 9)), scaled.rotation(X, slice(0, 9)), strict=True
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (LinearScaling, {"factor": 0.5}),
        (YaRNScaling, {"factor": 0.5}),
        (YaRNScaling, {"beta_slow": 32.0}),
        (Llama3Scaling, {"factor": 0.5}),
        (Llama3Scaling, {"low_freq_factor": 4.0}),
        (Llama3Scaling, {"low_freq_factor": 0.0}),
    ],
)
def test_invalid_scaling_is_refused(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)


def test_scaling_needs_two_pairs():
    with pytest.raises(ValueError, match=r"fraction=0.25 of head_dim=8 is 2, fewer than 4 columns"):
        Rotary(8, 1, fraction=0.25, scaling=LinearScaling())


def test_class_named_in_earlier_runs_is_the_same():
    assert Llama3ScalingOfEarlierRuns is Llama3Scaling
