"""Job files hold composed commands; the process that reads one checks it like any configuration."""

import pytest
from omegaconf import OmegaConf

from llm.config.composed import Composed
from llm.config.errors import ConfigError
from llm.launch.job_file import read_composed, write_composed


@pytest.fixture
def file(tmp_path):
    config = OmegaConf.create(
        {"_target_": "x.Y", "a": 1, "b": "${a}", "text": "\\${no}", "trust": []}
    )
    path = tmp_path / "0.yaml"
    write_composed(path, Composed(config, ["a=1", "text=${no}"], {"model": None}, "runs/${x}"))
    return path


def test_command_is_read_as_it_was_composed(file):
    read = read_composed(file)
    assert read.overrides == ["a=1", "text=${no}"]
    assert read.choices == {"model": None}
    assert read.directory.endswith("runs/${x}")
    read.config.a = 2
    assert (read.config.b, read.config.text) == (2, "${no}"), "references are kept, text is text"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("directory", None),
        ("overrides", 7),
        ("overrides", [5]),
        ("choices", 7),
        ("flags", "x"),
        ("config", None),
        ("more", 1),
    ],
)
def test_edited_file_is_refused_with_its_name(file, key, value):
    content = OmegaConf.load(file)
    content[key] = value
    OmegaConf.save(content, file)
    with pytest.raises(ConfigError, match=r"0\.yaml: is not a job file"):
        read_composed(file)


def test_trust_in_a_job_file_is_refused_unless_the_reader_sets_it(file):
    content = OmegaConf.load(file)
    content.config.trust = ["numpy"]
    OmegaConf.save(content, file)
    with pytest.raises(ConfigError, match="trust names"):
        read_composed(file)
    assert read_composed(file, ["numpy"]).config.trust == ["numpy"]
