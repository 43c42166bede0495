"""Rotations in the values of GGUF files."""

import pytest
import torch
from published_families import LLAMA3, PLAIN, YARN, rope

from llm.config.errors import ConfigError
from llm.weights.gguf_rotation import describe_rope, frequency_factors, read_rope, read_ropes

THREE = {**LLAMA3, "rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("given", [PLAIN, rope("linear"), YARN, LLAMA3, THREE])
def test_values_are_read_back(given):
    factors = frequency_factors(given, head_dim=64)
    found = read_rope(describe_rope(given), factors)
    expected = {key: value for key, value in given.items() if key != "original_max_position"}
    assert found == expected


def test_factors_of_llama_3_are_read_without_its_context():
    factors = frequency_factors(THREE, head_dim=64)
    assert factors is not None
    assert read_rope({"rope.freq_base": 500000.0}, factors) == THREE
    # The fastest pairs are kept, the slowest are slowed by the factor.
    assert (factors[0], factors[-1]) == (1, 8)


def test_other_factors_and_scalings_are_refused():
    with pytest.raises(ConfigError, match=r"other factors than Llama 3's scaling by 8"):
        read_rope({}, torch.tensor([1.0, 3.0, 8.0]))
    with pytest.raises(ConfigError, match=r"the scaling 'longrope' of the rotation is not"):
        read_rope({"rope.scaling.type": "longrope"}, None)
    with pytest.raises(ConfigError, match=r"yarn in layers with a window is not what llama.cpp"):
        describe_rope(PLAIN, YARN)


def test_local_layers_have_their_own_base():
    values = describe_rope(YARN, PLAIN)
    found = read_ropes(values, local_theta=1.0)
    assert found == {"full_attention": YARN, "sliding_attention": PLAIN}
    del values["rope.freq_base_swa"]
    assert read_ropes(values, local_theta=7.0)["sliding_attention"]["rope_theta"] == 7.0
