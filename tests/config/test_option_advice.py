"""Lines about options that do not suit the others; the command line tests have further ones (`tests/test_main.py`)."""

import pytest

from llm.config.base import Command
from llm.config.composition import check_composed, compose
from llm.config.errors import ConfigError
from llm.config.loader import CONF, open_loader


def problems(*words: str) -> tuple[str, ...]:
    loader = open_loader(CONF)
    with pytest.raises(ConfigError) as caught:
        assert isinstance(check_composed(loader, compose(loader, "train", words)), Command)
    return caught.value.problems


def test_advice_for_a_function_with_other_arguments_deletes_those_that_it_lacks():
    function = "llm.nn.state_space_duality.recurrent_state_space"
    advice = (
        f"model.attention.recurrence._target_={function} ~model.attention.recurrence.chunk_size"
    )
    assert problems("model=mamba2", "size=nano", "model/kernel=naive") == (
        "model/kernel=naive: model/attention=mamba2 has no kernel; leave it out, or use " + advice,
    )
    loader, words = open_loader(CONF), ("model=mamba2", "size=nano", *advice.split())
    assert check_composed(loader, compose(loader, "train", words)) is not None


def test_a_key_that_the_user_typed_keeps_its_own_line():
    [line] = problems("model=lstm", "size=nano", "+model.attention.kernel=null")
    assert line.startswith("model.attention.kernel: no such key; ")


@pytest.mark.parametrize(
    ("model", "section", "function", "left"),
    [
        ("mamba2", "recurrence", "state_space_duality.recurrent_state_space", ["chunk_size"]),
        (
            "gated_deltanet",
            "recurrence",
            "gated_delta_rule.recurrent_gated_delta_rule",
            ["chunk_size"],
        ),
        ("gpt", "kernel", "attention.naive_attention", []),
    ],
)
def test_keys_that_another_function_lacks_are_deleted_as_advised(model, section, function, left):
    key = f"model.attention.{section}"
    words = [f"model={model}", "size=nano", f"{key}._target_=llm.nn.{function}"]
    if left:
        deletions = [f"~{key}.{name}" for name in left]
        assert problems(*words) == (
            f"{key}._target_: has no {', '.join(left)}, which the config sets; add {' '.join(deletions)}",
        )
        words += deletions
    loader = open_loader(CONF)
    assert check_composed(loader, compose(loader, "train", words)) is not None


def test_tensors_are_not_suggested_as_keys():
    [line] = problems("model=mamba2", "size=nano", "+model.attention.recurrence.foo=1")
    assert line == "model.attention.recurrence.foo: no such key; there are chunk_size"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["model=llama", "model.norm=layer"], "model/norm=layer"),
        (["experiment=instruct", "data.template=alpaca"], "data/template=alpaca"),
        (
            ["model=smollm3", "model.layers.nope.position=alibi"],
            "+model/position@model.layers.nope.position=alibi",
        ),
    ],
)
def test_a_key_set_to_the_name_of_an_option_is_answered_with_the_option(words, advice):
    key, _, name = words[-1].partition("=")
    group = advice.lstrip("+").partition("@")[0].partition("=")[0]
    assert problems(*words) == (f"{key}: {name} is an option of {group}; choose it with {advice}",)
    loader = open_loader(CONF)
    assert check_composed(loader, compose(loader, "train", [*words[:-1], advice])) is not None
