"""The check: each kind of mistake has a line with its key and the correction, and all are reported at once."""

import pytest
import torch
from omegaconf import OmegaConf

from llm.config.annotations import parameters
from llm.config.check import check, check_nodes
from llm.config.composed import Composed
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError


@pytest.fixture
def problems(kit):
    """Return the lines that the check of a configuration reports."""

    def run(config):
        tree = OmegaConf.create({"_target_": "kit.Study", "trust": [kit], **config})
        try:
            check(Composed(tree))
        except ConfigError as error:
            return str(error).splitlines()
        return []

    return run


def model(**changes):
    norm = {"_target_": "kit.Norm", "_partial_": True}
    return {"_target_": "kit.Model", "vocab_size": "???", "dim": 4, "norm": norm} | changes


def factory(name, **values):
    return {"_target_": f"kit.{name}", "_partial_": True, **values}


def test_valid_configuration_passes(problems):
    assert problems({"model": model(attention=factory("Attention", num_heads=2))}) == []


VALUES = [
    ({"cuont": 3}, "weights.cuont: no such key; did you mean weights.count?"),
    ({"zzz": 3}, "weights.zzz: no such key; there are apply, count, flag, maybe"),
    ({"count": "three"}, "weights.count: 'three' is not an int; use a whole number such as 8"),
    ({"count": 1.5}, "weights.count: 1.5 is not an int"),
    ({"count": True}, "weights.count: True is not an int"),
    ({"count": None}, "weights.count: null is not an int"),
    ({"rate": True}, "weights.rate: True is not a float"),
    ({"flag": 1}, "weights.flag: 1 is not a bool; use true or false"),
    ({"maybe": "x"}, "weights.maybe: 'x' is not an int or null"),
    ({"mode": "fast"}, "weights.mode: 'fast' is not one of the choices; use auto or 32"),
    ({"pair": [1.0]}, "weights.pair: [1.0] is not a tuple[float, float]"),
    ({"pair": [1.0, "b"]}, "weights.pair: [1.0, 'b'] is not a tuple"),
    ({"words": "abc", "steps": 3}, "weights.steps: 3 is not a Sequence"),
    ({"words": ["a", 3]}, "weights.words: ['a', 3] is not a Sequence[str]"),
    ({"table": {"a": "b"}}, "weights.table: {'a': 'b'} is not a Mapping[str, float] or null"),
    ({"apply": "lower"}, "weights.apply: 'lower' is not a (str) -> str or null"),
    ({"count": "???"}, "weights.count: has no value; set it with weights.count=…"),
    ({"count": "${nowhere}"}, "weights.count: ${nowhere} cannot be resolved"),
    ({"count": -1}, "weights.count=-1: must not be negative"),
    ({"_args_": [1]}, "weights._args_: no such key"),
    ({"_recursive_": False}, "weights._recursive_: no such key"),
    ({"_partial_": "yes"}, "weights._partial_: 'yes' is not a bool; write true or leave it out"),
    ({"apply": factory("number")}, "weights.apply: number does not make a (str) -> str or null"),
    (
        {"apply": factory("cut")},
        "weights.apply.length: is required and missing; add it (int)",
    ),
    ({"apply": factory("lower", text="x")}, "weights.apply.text: is passed by the code; remove it"),
    (
        {"apply": {"_target_": "kit.cut", "text": "a", "length": 1}},
        "weights.apply: is built immediately, but a factory (str) -> str or null is required; "
        "add `_partial_: true`",
    ),
    (
        {"count": factory("number")},
        "weights.count: is a factory, but int is required; remove",
    ),
    (
        {"count": {"_target_": "kit.anything"}},
        "weights.count: anything has * or ** arguments, which cannot be checked; "
        "wrap it in a function with an explicit signature",
    ),
    ({"count": {"_target_": "os.getpid"}}, "weights.count: os.getpid is not on the allowlist"),
    ({"steps": [factory("lower"), factory("cuts")]}, "weights.steps[1]: kit.cuts does not exist"),
]


@pytest.mark.parametrize(("values", "line"), VALUES, ids=[line for _, line in VALUES])
def test_a_wrong_value_is_named_with_its_fix(problems, values, line):
    found = problems({"weights": {"_target_": "kit.Values", **values}})
    assert any(problem.startswith(line) for problem in found), found
    assert len(found) == 1, found


@pytest.mark.parametrize(
    "values",
    [
        {"rate": 1, "maybe": None, "mode": 32, "pair": [1, 2.0], "words": ["a"], "table": {"a": 1}},
        {"apply": factory("lower"), "steps": [factory("lower"), factory("cut", length=3)]},
        {"count": {"_target_": "kit.number"}, "maybe": "${.count}"},
        {"count": "${seed}"},
    ],
)
def test_values_of_the_annotated_type_pass(problems, values):
    assert problems({"seed": 3, "weights": {"_target_": "kit.Values", **values}}) == []


def test_top_level_keys_are_known(problems):
    assert problems({"modle": 1}) == ["modle: no such key; did you mean model?"]
    assert problems({"foo": 1})[0].startswith(
        "foo: no such key; there are adapter, callbacks, data, "
    )
    assert problems({"seed": "x"}) == ["seed: 'x' is not an int; use a whole number such as 8"]


def test_required_key_must_be_set_unless_it_is_filled_in_later(problems, kit):
    incomplete = model()
    del incomplete["dim"]
    assert problems({"model": incomplete}) == ["model.dim: is required and missing; add it (int)"]
    tree = OmegaConf.create({"trust": [kit], "model": model(dim="???")})
    with pytest.raises(ConfigError, match=r"^model.dim: has no value; set it with model"):
        check_nodes(tree, {"model": Deferred[torch.nn.Module]})


def test_a_module_beneath_a_factory_would_be_shared(problems):
    shared = {"_target_": "kit.Norm", "dim": 4}
    found = problems({"model": model(attention=factory("Attention", num_heads=2, kernel=shared))})
    assert found == [
        "model.attention.kernel: one module would be shared by all products of the factory around it; "
        "add `_partial_: true`, so that each gets its own"
    ]
    assert problems({"model": model(final=shared)}) == []


def test_object_in_place_of_a_factory_is_refused(problems):
    found = problems({"model": model(norm={"_target_": "kit.Norm", "dim": 4})})
    assert found == [
        "model.norm: is built immediately, but a factory (int) -> Module is required; add `_partial_: true`"
    ]


def test_section_accepts_only_its_own_type(problems):
    assert problems({"model": {"_target_": "kit.Values"}}) == [
        "model: Values is not a Module; choose another _target_"
    ]
    assert problems({"callbacks": {"a": {"_target_": "kit.Values"}, "b": None}}) == [
        "callbacks.a: Values is not a Callback or null; choose another _target_"
    ]


def test_a_module_without_a_constructor_takes_nothing(problems):
    plain = {"_target_": "kit.Plain"}
    assert problems({"model": model(final=plain)}) == []
    assert problems({"model": model(final=plain | {"dim": 3})}) == [
        "model.final.dim: no such key; there are none"
    ]


def test_constructors_of_the_model_are_checked_without_memory(problems):
    found = problems({"model": model(dim=2**40, attention=factory("Attention", num_heads=3))})
    assert found == [
        "model.attention.num_heads=3 does not divide dim=1099511627776: choose a divisor"
    ]


def test_the_check_draws_no_random_numbers(problems):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert problems({"model": model()}) == []
    assert torch.equal(before, torch.get_rng_state())


def test_mistake_in_a_referenced_node_is_reported_only_there(problems):
    weights = {"_target_": "kit.Values", "apply": "${optimizer}"}
    found = problems({"weights": weights, "optimizer": factory("nothing")})
    assert [line.partition(":")[0] for line in found] == ["optimizer"]


def test_rules_check_the_whole_tree(problems):
    config = {
        "model": model(context_length=64),
        "data": {"_target_": "kit.x", "context_length": 128},
    }
    told = "data.context_length: 128 is more than the model's 64; set size.context_length, which sets both"
    assert told in problems(config)
    config["data"]["context_length"] = 32
    assert not any("more than" in line for line in problems(config)), "shorter rows fit"


def test_rules_see_referenced_nodes(problems):
    config = {
        "model": "${task.model}",
        "task": {"_target_": "kit.x", "model": model(context_length=64)},
        "data": {"_target_": "kit.x", "context_length": 128},
    }
    assert any("128 is more than the model's 64" in line for line in problems(config))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"name": "a/b"},
            "name: a/b has a slash, which a folder name must not contain; leave it out",
        ),
        (
            {"name": "../x"},
            "name: ../x has a slash and a leading dot, which a folder name must not contain; leave it out",
        ),
        (
            {"name": ".x"},
            "name: .x has a leading dot, which a folder name must not contain; leave it out",
        ),
        ({"name": "a\nb"}, "name: 'a\\nb' has characters that cannot be printed; leave them out"),
        ({"name": "é" * 150}, f"name: {'é' * 20}… has 300 bytes; use 200 at most"),
        (
            {"output_dir": "runs/" + "x" * 300},
            "output_dir: runs/xxxxxxxxxxxxxxx… is too long for a path; use at most 255 bytes between two /",
        ),
        ({"mfu": "2.5B"}, "mfu: '2.5B' is not a float; write 2.5e9"),
        ({"max_tokens": "10k"}, "max_tokens: '10k' is not an int; write 10000"),
    ],
)
def test_invalid_name_path_or_number_is_reported_in_one_line(problems, config, line):
    assert problems(config) == [line]


def test_name_may_contain_any_printable_character(problems):
    assert problems({"name": "a b:c,d=\\${e} (f) ünï"}) == []


def test_trust_is_refused_once(problems):
    hardware = {"_target_": "llm.hardware.Hardware"}
    (line,) = problems({"trust": ["os"], "hardware": hardware})
    assert line.startswith("trust: os cannot be trusted as a whole")


def test_trust_itself_is_checked(problems):
    assert (
        "trust: os cannot be trusted as a whole; wrap what you need"
        in problems({"trust": ["os"]})[0]
    )


def test_all_problems_are_reported_at_once(problems):
    found = problems(
        {
            "foo": 1,
            "seed": None,
            "model": model(dmi=3, dim="4"),
            "weights": {"_target_": "kit.Values", "count": "x", "rate": "${a.b}"},
        }
    )
    keys = [line.partition(":")[0] for line in found]
    expected = ["foo", "model.dim", "model.dmi", "seed", "weights.count", "weights.rate"]
    assert sorted(keys) == expected


def test_shared_parameters_of_a_constructor_are_those_of_the_parent_class():
    class Parent:
        def __init__(self, a: int, *, b: str = "") -> None:
            raise NotImplementedError

    class Child(Parent):
        def __init__(self, *, b: int = 3, c: float, **shared) -> None:
            raise NotImplementedError

    class Grandchild(Child):
        pass

    class Other(Parent):
        supplied = ("a",)

        def __init__(self, **shared) -> None:
            raise NotImplementedError

    assert list(parameters(Other)) == ["b"]
    found = parameters(Grandchild)
    assert list(found) == ["b", "c", "a"]
    assert found["a"] == parameters(Parent)["a"]
    assert (found["b"].annotation, found["b"].default) == (int, 3), "its own comes first"
