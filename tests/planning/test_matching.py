"""`match=`: equal points, as far as widths and steps allow; the remaining difference is reported."""

import pytest
from omegaconf import OmegaConf

from llm.config.errors import ConfigError
from llm.planning.cost import cost
from llm.planning.matching import match, remaining_differences


def values(matched) -> dict[str, str]:
    return dict(word.split("=") for word in matched.overrides)


def test_a_width_is_matched_to_the_nearest_row(composed):
    points = [composed("model=gpt2 size=micro"), composed("model=llama size=micro")]
    first, second = match(points, "parameters")
    assert first.overrides == []
    changed = values(second)
    assert list(changed) == ["model.feed_forward.hidden_dim"]  # nothing else had to change
    distances = []
    for offset in (-1, 0, 1):
        OmegaConf.update(
            points[1], "model.feed_forward.hidden_dim", offset + int(*changed.values())
        )
        distances.append(abs(cost(points[1]).parameters - first.cost.parameters))
    assert min(distances) == distances[1] == abs(second.cost.parameters - first.cost.parameters)
    assert cost(points[0]) == first.cost  # the points stay as they were


@pytest.mark.parametrize(("reference", "point"), [("micro", "nano"), ("nano", "micro")])
def test_width_of_the_model_changes_beyond_half_or_twice_the_feed_forward_width(
    reference, point, composed
):
    points = [composed(f"model=gpt2 size={reference}"), composed(f"model=gpt size={point}")]
    first, second = match(points, ["parameters"])
    dim = int(values(second)["size.dim"])
    assert dim % (2 * points[1].size.num_heads) == 0
    assert abs(remaining_differences([first, second])[1]["parameters"]) < 0.01
    hidden = values(second).get("model.feed_forward.hidden_dim", 4 * dim)
    assert 2 * dim <= int(hidden) <= 8 * dim


def test_equal_points_are_unchanged(composed):
    points = [composed("size=nano seed=1"), composed("size=nano seed=2")]
    for by in ("parameters", "flops", "tokens"):
        assert [each.overrides for each in match(points, by)] == [[], []]


def test_steps_are_matched_to_the_same_number_of_tokens(composed):
    points = [
        composed("size=nano trainer.max_steps=100 data.batch_size=8"),
        composed("size=nano trainer.max_steps=100 data.batch_size=4"),
        composed("size=nano trainer.max_steps=null trainer.max_tokens=1e6"),
    ]
    matched = match(points, "tokens")
    assert matched[1].overrides == ["trainer.max_steps=200"]
    assert matched[2].overrides == ["trainer.max_steps=100", "trainer.max_tokens=null"]
    assert [left["tokens"] for left in remaining_differences(matched)] == [0, 0, 0]


def test_widths_and_steps_may_be_matched_together(composed):
    points = [
        composed("model=gpt2 size=nano trainer.max_steps=5000"),
        composed("model=llama size=nano size.context_length=128 trainer.max_steps=5000"),
    ]
    matched = match(points, ["parameters", "flops"])
    left = remaining_differences(matched)[1]
    assert abs(left["parameters"]) < 1e-3
    assert abs(left["flops"]) < 1e-3
    assert abs(left["tokens"]) > 0.01  # equal FLOPs do not mean equal tokens
    assert match(points, ["parameters", "flops"]) == matched


@pytest.mark.parametrize("preset", ["mamba2", "lstm", "gru"])
def test_a_model_without_feed_forward_layers_is_matched_by_its_own_width(preset, composed):
    points = [composed("model=gpt size=micro"), composed(f"model={preset} size=micro")]
    first, second = match(points, "parameters")
    assert list(values(second)) == ["size.dim"]
    assert second.cost.parameters == pytest.approx(first.cost.parameters, rel=0.05)


@pytest.mark.parametrize(("first", "second"), [(8, 2), (2, 8)])
def test_fixed_width_is_named(first, second, composed):
    points = [composed(f"model.dim=64 size=nano size.num_layers={n}") for n in (first, second)]
    with pytest.raises(ConfigError, match=r"model\.dim=64 fixes the width; set size\.dim instead"):
        match(points, "parameters")


def test_feed_forward_width_that_the_model_does_not_use_is_unchanged(composed, monkeypatch):
    monkeypatch.setattr("llm.planning.matching.HIDDEN", "size.context_length")
    points = [composed(f"model=llama size={size}") for size in ("micro", "nano")]
    assert list(values(match(points, "parameters")[1])) == ["size.dim"]


@pytest.mark.parametrize(
    ("by", "words", "message"),
    [
        (
            "parameters",
            ["", "size.dim=256 size.num_heads=64"],
            "and the nearest that another point can have",
        ),
        (
            "tokens",
            ["trainer.max_steps=1", "data.batch_size=512"],
            "and the nearest that another point can have",
        ),
        ("parameters", [""], "a single run has nothing to match"),
        (["flops", "tokens"], ["", ""], "set the number of steps; choose one of them"),
        (["parameters", "active_parameters"], ["", ""], "set the widths; choose one of them"),
        ("flops", ["experiment=spam", ""], "known before its data are read"),
        ("tokens", ["", "experiment=instruct"], "known before its data are read"),
        ("parameters", ["", "tokenizer=char data=text data.path=x"], "choose a tokenizer"),
    ],
)
def test_impossible_matching_is_refused_in_one_line(
    by, words, message, composed, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))  # empty: the size of the data is not known
    with pytest.raises(ConfigError, match=message) as refusal:
        match([composed(f"size=nano {each}") for each in words], by)
    assert "\n" not in str(refusal.value)


def test_a_mixture_is_matched_by_its_active_parameters(composed):
    points = [composed("model=llama size=micro"), composed("model=mixtral size=micro")]
    first, second = match(points, "active_parameters")
    assert list(values(second)) == ["model.feed_forward.hidden_dim"]
    assert second.cost.active_parameters == pytest.approx(first.cost.parameters, rel=0.005)
    assert second.cost.parameters > 1.5 * first.cost.parameters
