"""Building: arguments of constructors, results, and the keys under which errors are reported."""

import functools
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from llm.config.build import build
from llm.config.errors import ConfigError


def test_nested_nodes_are_built_first_and_values_arrive_plain(kit):
    config = OmegaConf.create(
        {
            "trust": [kit],
            "part": {
                "_target_": "kit.Values",
                "pair": [1, 2.0],
                "rate": 2,
                "words": ["a"],
                "table": {"a": "${top}"},
                "steps": [{"_target_": "kit.lower", "_partial_": True}],
            },
            "top": 0.5,
        }
    )
    values = build(config.part)
    assert values.pair == (1.0, 2.0)  # a tuple as annotated, although YAML has only lists
    assert [type(value) for value in (*values.pair, values.rate)] == [float] * 3
    assert type(values.words) is list
    assert values.table == {"a": 0.5}
    assert type(values.table) is dict
    assert values.steps[0]("ABC") == "abc"


def test_arguments_of_the_caller_are_passed_unchanged():
    parameters = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 3.0}]
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    optimizer = build(node)(parameters)
    assert optimizer.param_groups[0]["params"][0] is parameters[0]["params"][0]
    assert build({"_target_": "llm.hardware.Hardware", "workers": 1}, workers=2).workers == 2


def test_factory_is_a_plain_partial(kit):
    """Kernels and activations are called in every layer of every step, so a call must be cheap."""
    config = OmegaConf.create({"trust": [kit], "cut": {"_target_": "kit.cut", "_partial_": True}})
    assert build(config.cut).__name__ == "cut"
    config.cut.length = 2
    assert type(build(config.cut)) is functools.partial
    assert build(config.cut)("abc") == "ab"


def test_missing_value_may_be_passed_by_the_caller(kit):
    config = OmegaConf.create(
        {
            "trust": [kit],
            "model": {
                "_target_": "kit.Model",
                "vocab_size": "???",
                "dim": 4,
                "norm": {"_target_": "kit.Norm", "_partial_": True},
            },
        }
    )
    assert build(config.model, vocab_size=7).embedding.num_embeddings == 7
    with pytest.raises(ConfigError, match=r"^model\.vocab_size: has no value; set it with"):
        build(config.model)


def test_build_accepts_sections_and_none():
    assert build(None) is None
    assert build({"a": {"_target_": "llm.hardware.Hardware"}, "b": None}).keys() == {"a", "b"}


def test_constructor_error_is_one_line_with_the_full_key(kit):
    config = OmegaConf.create(
        {"trust": [kit], "part": {"inner": {"_target_": "kit.Norm", "dim": 3}}}
    )
    with pytest.raises(ConfigError) as caught:
        build(config.part)
    assert str(caught.value) == "part.inner.dim=3 is odd: choose an even one"


def test_error_inside_a_factory_names_the_node_of_the_factory(kit):
    config = OmegaConf.create(
        {
            "trust": [kit],
            "model": {
                "_target_": "kit.Model",
                "vocab_size": 5,
                "dim": 4,
                "norm": {"_target_": "kit.Norm", "_partial_": True},
                "attention": {"_target_": "kit.Attention", "_partial_": True, "num_heads": 3},
            },
        }
    )
    with pytest.raises(ConfigError, match=r"^model\.attention\.num_heads=3 does not divide dim=4"):
        build(config.model)


def test_a_crash_keeps_its_own_exception(kit):
    config = OmegaConf.create({"trust": [kit], "part": {"_target_": "kit.broken", "dim": 3}})
    with pytest.raises(TypeError, match="unsupported operand"):
        build(config.part)


def test_nothing_is_built_when_one_target_is_refused(kit, tmp_path):
    config = OmegaConf.create(
        {
            "trust": [kit],
            "part": {
                "_target_": "kit.Values",
                "apply": {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "made")},
                "steps": [{"_target_": "os.system", "command": "true"}],
            },
        }
    )
    with pytest.raises(ConfigError) as caught:
        build(config.part)
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "part.apply",
        "part.steps[0]",
    ]
    assert not any(tmp_path.iterdir())


def test_no_other_module_instantiates():
    source = Path(__file__).parents[2] / "src" / "llm"
    callers = [path for path in source.rglob("*.py") if "instantiate(" in path.read_text()]
    assert callers == []
