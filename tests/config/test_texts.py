"""Texts on a command line are used as typed, in single runs and in sweeps."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from llm.config.command_line import config_dir
from llm.config.composition import compose
from llm.config.loader import CONF, open_loader
from llm.config.overrides import values
from llm.config.texts import as_text


def meant(word, is_sweep=False):
    """Return the values that Hydra reads from a word, one per point of a sweep."""
    parser = OverridesParser.create()
    override = parser.parse_override(as_text(word, is_sweep=is_sweep))
    words = [word]
    if override.is_sweep_override():
        words = [f"x={value}" for value in override.sweep_string_iterator()]
        found = [parser.parse_override(word).value() for word in words]
    else:
        found = [override.value()]
    return [OmegaConf.create({"x": value}).x for value in found]


TYPED = [
    ("name=1e5", ["1e5"]),
    ("name=null", [None]),
    ("name=a$b{c}=(d)", ["a$b{c}=(d)"]),
    ("data.text=0", ["0"]),
    ("data.path=my text: a\\b.txt", ["my text: a\\b.txt"]),
    ("data.path=a\\,b.txt", ["a,b.txt"]),
    ("data.path=${oc.env:HOME}", ["${oc.env:HOME}"]),
    ("data.path=[a b,c]", [["a b", "c"]]),
    ("output_dir=[x]", ["[x]"]),
    ("prompt=[a, b]", [["a", "b"]]),
    ("prompt=[1e5, true, null]", [["1e5", "true", "null"]]),
    ("prompt=[]", [[]]),
    ('prompt="[a, b]"', ["[a, b]"]),
    ("stop=\\n", ["\n"]),
    ("stop=[\\n,END]", [["\n", "END"]]),
    ("stop=\\\\n", ["\\n"]),
]


@pytest.mark.parametrize(("word", "value"), TYPED)
def test_a_text_is_what_was_typed(word, value):
    assert meant(word) == value


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("data.path=my text: a\\b.txt", ["my text: a\\b.txt"]),
        ("data.path=a\\,b.txt", ["a,b.txt"]),
        ("data.path=a b.txt, c.txt", ["a b.txt", "c.txt"]),
        ('data.path="a,b",c', ["a,b", "c"]),
        ("data.path=it's,b's", ["it's", "b's"]),
        ("data.path=choice(a,b)", ["a", "b"]),
        ("name=1e5,2", ["1e5", "2"]),
        ("prompt=a,b", ["a,b"]),
    ],
)
def test_commas_separate_paths_and_names_in_a_sweep(word, values):
    assert meant(word, is_sweep=True) == values


@pytest.mark.parametrize("text", ['a "b" \\', "it's", "a\\b\\\\c", "${x}", "\\\\${x}", "1e5", ""])
def test_a_text_is_recorded_without_its_quotes(text):
    assert values([as_text(f"data.path={text}")]) == {"data.path": text}


def test_a_tilde_at_the_beginning_of_a_path_is_the_home_folder(tmp_path, monkeypatch):
    """Shells do not expand it after `data.path=` and `--config-dir=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "mine.yaml").write_text(
        "defaults: [text]\npath: [~/a.txt, b~.txt]\nvalidation_path: ${output_dir}/~\n"
    )
    loader = open_loader(CONF, config_dir("~/configs"))
    words = ["data=mine", "output_dir=~", "weights=run", "weights.path=~/r${seed}"]
    config = compose(loader, "train", [as_text(word) for word in words]).config
    assert config.data.path == [f"{tmp_path}/a.txt", "b~.txt"]
    assert (config.output_dir, config.data.validation_path) == (str(tmp_path), f"{tmp_path}/~")
    assert (
        config.weights.path == f"{tmp_path}/r${{seed}}"
    )  # typed on the command line, so it is not resolved
    runs = compose(loader, "compare", ['runs=["~/a"]', as_text("output=~nobody_here/x")]).config
    assert (runs.runs, runs.output) == ([f"{tmp_path}/a"], "~nobody_here/x")
