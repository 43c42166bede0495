"""Kinds of layers in a repeating pattern."""

import pytest

from llm.nn.layer_schedule import Layer, describe_schedule, layer_schedule
from llm.nn.positions import Learned, NoPosition, Sinusoidal

KINDS = {"local": Layer(), "full": Layer()}


def test_pattern_repeats_and_its_last_repetition_is_cut_short():
    schedule = layer_schedule(8, layers=KINDS, pattern=["2*local", "full"])
    assert schedule == ["local", "local", "full", "local", "local", "full", "local", "local"]
    assert describe_schedule(schedule) == "6 local, 2 full"


@pytest.mark.parametrize("entry", ["3*local", "3 * local", "3 *local"])
def test_entry_may_have_spaces_around_its_factor(entry):
    assert layer_schedule(4, layers=KINDS, pattern=[entry, "full"]) == [*["local"] * 3, "full"]


@pytest.mark.parametrize(
    ("num_layers", "pattern", "expected"),
    [
        (6, ["5*local", "full"], ["5*local", "full"]),
        (4, ["5*local", "full"], ["3*local", "full"]),
        (2, ["5*local", "full"], ["local", "full"]),
        (3, ["3*full", "3*local"], ["full", "2*local"]),
        (5, ["local", "full", "4*local", "full"], ["local", "full", "2*local", "full"]),
    ],
)
def test_pattern_longer_than_the_stack_has_shorter_runs(num_layers, pattern, expected):
    schedule = layer_schedule(num_layers, layers=KINDS, pattern=pattern)
    assert schedule == layer_schedule(num_layers, layers=KINDS, pattern=expected)


def test_stack_needs_a_layer_of_each_kind():
    with pytest.raises(
        ValueError, match="needs 2 layers or more, and num_layers=1; use more layers"
    ):
        layer_schedule(1, layers=KINDS, pattern=["5*local", "full"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            ["locla", "full"],
            r"pattern=\[locla,full\]: locla is not in layers; did you mean local\?",
        ),
        (["local"], r"pattern=\[local\]: leaves out layers.full; add it, or delete that kind"),
        (["local", "0*full"], r"leaves out layers.full"),
        (
            ["local", "full"] * 3,
            r"needs 6 layers or more, and num_layers=4; use a shorter pattern, such as \[local,full\], or more layers",
        ),
    ],
)
def test_pattern_that_does_not_fit_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        layer_schedule(4, layers=KINDS, pattern=pattern)


@pytest.mark.parametrize("position", [Learned(4, 8), Sinusoidal(8)])
def test_position_added_to_the_embeddings_is_refused_for_a_layer(position):
    with pytest.raises(ValueError, match="is added to the embeddings"):
        Layer(position=position)
    assert Layer(position=NoPosition()).mask is None
