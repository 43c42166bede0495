"""Words that Hydra cannot compose are reported in one line with the nearest right name."""

import re

import pytest
from small_runs import checked_points

from llm.config.composition import compose, load_tree, sweep_jobs
from llm.config.errors import ConfigError
from llm.config.loader import open_loader

FILES = {
    "main.yaml": """
defaults: [_self_, model: gpt2, weights: none]
_target_: kit.Study
seed: 0
trust: [kit]
hardware: {_target_: llm.hardware.Hardware, workers: 0}
task: null
""",
    "weights/none.yaml": "# @package _global_\nweights: null\n",
    "weights/values.yaml": "_target_: kit.Values\ncount: 1\n",
    "model/gpt.yaml": '{_target_: kit.Model, vocab_size: "???", dim: 4, norm: {_target_: kit.Norm, _partial_: true}}\n',
    "model/gpt2.yaml": "defaults: [gpt, norm: plain]\n",
    "model/llama.yaml": "defaults: [gpt]\n",
    "model/norm/plain.yaml": "{_target_: kit.Norm, _partial_: true, eps: 0.1}\n",
    "extra/thing.yaml": "a: 1\n",
}


@pytest.fixture
def loader(tmp_path, kit, monkeypatch):
    """A loader whose primary folder counts as packaged, so that its files may set `trust`."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr("llm.config.loader.CONF", str(tmp_path))
        return open_loader(str(tmp_path))


def test_wrong_option_of_a_hydra_group_lists_its_options():
    loader = open_loader("pkg://llm.conf")
    with pytest.raises(ConfigError) as refused:
        compose(loader, "train", ["hydra/launcher=basc"])
    (line,) = refused.value.problems
    assert line.startswith("hydra/launcher=basc: no such option; did you mean basic? (there are ")


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["model=gpt3"],
            ["model=gpt3: no such option; did you mean gpt2? (there are gpt, gpt2, llama)"],
        ),
        (["model=zzz"], ["model=zzz: no such option; there are gpt, gpt2, llama"]),
        (["modle=gpt2"], ["modle: no such group or key; did you mean model?"]),
        (["model/nrom=plain"], ["model/nrom: no such group; did you mean model/norm?"]),
        (["model.norm.esp=1"], ["model.norm.esp: no such key; did you mean model.norm.eps?"]),
        (["hardware.wrokers=1"], ["hardware.wrokers: no such key; did you mean hardware.workers?"]),
        (["workers=1"], ["workers: no such key here; did you mean hardware.workers?"]),
        (["norm.eps=1"], ["norm.eps: no such key here; did you mean model.norm.eps?"]),
        (["~modle"], ["modle: no such group or key; did you mean model?"]),
        (
            ["hardware.threads=1"],
            ["hardware.threads: is not in the config, but can be added; use +hardware.threads=…"],
        ),
        (
            ["weights.count=1"],
            ["weights.count: weights is null here; choose one first with weights=…"],
        ),
        (
            ["seed=("],
            ["seed=(: cannot be read; quote the value, twice for the shell: 'key=\"value\"'"],
        ),
        (
            ["seed=1,2"],
            ["seed=1,2: several values; add -m to run each, or write one list: seed=[…]"],
        ),
        (
            ["model=gpt3", "sede=1", "hardware.x=1"],
            [
                "model=gpt3: no such option; did you mean gpt2? (there are gpt, gpt2, llama)",
                "sede: no such group or key; did you mean seed?",
                "hardware.x: no such key; there are workers",
            ],
        ),
        (
            ["extra=thing"],
            ["extra=thing: this command does not use extra; leave it out"],
        ),
    ],
)
def test_override_that_does_not_compose_is_explained(loader, overrides, lines):
    with pytest.raises(ConfigError) as caught:
        compose(loader, "main", overrides)
    assert list(caught.value.problems) == lines


def test_composed_tree_has_no_hydra_section(loader):
    assert "hydra" not in compose(loader, "main", ["seed=3"]).config
    assert compose(loader, "main", ["weights=values", "weights.count=3"]).config.weights.count == 3


@pytest.mark.parametrize("word", ["+model.n_dim=3", "++model.n_dim=3"])
def test_plus_does_not_bypass_the_check(loader, word):
    with pytest.raises(
        ConfigError, match=r"^model\.n_dim: no such key; did you mean model\.dim\?$"
    ):
        checked_points(loader, "main", [word])


def test_a_new_top_level_key_is_caught(loader):
    with pytest.raises(ConfigError, match=r"^foo: no such key; there are"):
        checked_points(loader, "main", ["+foo=1"])


def test_a_sweep_is_the_product_of_its_values(loader):
    words = ["model=gpt,gpt2", "seed=range(2)", "hardware.workers=1"]
    found = sweep_jobs(loader, load_tree(loader, "main", words, is_sweep=True), words)
    assert len(found) == 4
    assert ["model=gpt", "seed=1", "hardware.workers=1"] in found


def test_every_point_is_checked_and_named(loader):
    with pytest.raises(ConfigError) as caught:
        checked_points(
            loader,
            "main",
            ["model=gpt,llama", "model.dim=4,3,5", "hardware.workers=-1"],
            is_sweep=True,
        )
    dim = "model.norm.dim={0} is odd: choose an even one"
    first, *rest = caught.value.problems
    assert first.startswith(
        "hardware.workers: -1 is out of range; give 0"
    )  # reported once, because it is wrong in every point
    assert rest == [] or all(" | " in line for line in rest)
    with pytest.raises(ConfigError) as caught:
        checked_points(loader, "main", ["model=gpt,llama", "model.dim=4,3"], is_sweep=True)
    assert list(caught.value.problems) == [
        f"model=gpt model.dim=3 | {dim.format(3)}",
        f"model=llama model.dim=3 | {dim.format(3)}",
    ]


def test_all_missing_options_of_a_sweep_are_reported(loader):
    with pytest.raises(ConfigError) as caught:
        checked_points(loader, "main", ["model=gpt,gtp,lama"], is_sweep=True)
    told = "\n".join(caught.value.problems)
    assert "model=gtp: no such option; did you mean gpt?" in told
    assert "model=lama: no such option; did you mean llama?" in told


def test_valid_points_pass(loader):
    checked_points(loader, "main", ["model=gpt,llama", "seed=1,2"], is_sweep=True)


def test_file_that_is_not_yaml_is_named_with_its_line(tmp_path, loader):
    (tmp_path / "model" / "torn.yaml").write_text("dim: {a: 1\n")
    with pytest.raises(ConfigError, match=r"torn\.yaml\", line 2"):
        compose(loader, "main", ["model=torn"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=mine"], r"^data.batch_size: 'many' is not an int; .* \(set in {}/data/mine.yaml\)"),
        (["data=mine"], r"\ndata.nope: no such key; .* \(set in {}/data/mine.yaml\)"),
        (["experiment=mine"], r"^seed: 'x' is not an int; .* \(set in {}/experiment/mine.yaml\)"),
        (
            ["experiment=mine", "seed=y"],
            r"^seed: 'y' is not an int; use a whole number such as 8$",
        ),
        (["experiment=wrong"], r"gtp2.*; read from {}/experiment/wrong.yaml$"),
    ],
)
def test_wrong_value_in_a_users_file_is_reported_with_the_file(tmp_path, words, told):
    files = {
        "data/mine": "defaults: [text]\npath: x\nbatch_size: many\nnope: 3\n",
        "experiment/mine": "# @package _global_\nseed: x\n",
        "experiment/wrong": "# @package _global_\ndefaults: [{override /model: gtp2}]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    loader = open_loader("pkg://llm.conf", str(tmp_path))
    with pytest.raises(ConfigError, match=told.format(re.escape(str(tmp_path)))):
        checked_points(loader, "train", words)


def test_folder_of_user_configs_is_used(tmp_path, loader):
    own = tmp_path / "own"
    (own / "model").mkdir(parents=True)
    (own / "model" / "mine.yaml").write_text("defaults: [gpt]\ndim: 8\n")
    loader = open_loader(str(tmp_path), str(own))
    assert compose(loader, "main", ["model=mine", "trust=[kit]"]).config.model.dim == 8


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        (
            "data.path=b",
            r"data.path: data=python_docs has no such key; add data=text "
            r"\(instruction, labelled, preference also have it\)",
        ),
        (
            "data.document_separator=x",
            "data.document_separator: data=python_docs has no such key; add data=text$",
        ),
    ],
)
def test_key_of_another_option_is_reported_with_the_option(word: str, remedy: str):
    loader = open_loader("pkg://llm.conf")
    typed = remedy.replace("add data=text", "replace data=python_docs by data=text")
    with pytest.raises(ConfigError, match=typed):
        checked_points(loader, "train", ["data=python_docs", word])
    with pytest.raises(ConfigError, match=remedy):
        checked_points(loader, "train", [word])
