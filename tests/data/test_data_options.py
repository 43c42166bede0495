"""The options of the group data: every corpus composes, passes the check and is built."""

import json
from pathlib import Path

import llm.conf
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from small_runs import command_of

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.data.corpora.text import TextDataModule
from llm.data.corpora.text_files import FilesDataModule

OPTIONS = Path(next(iter(llm.conf.__path__))) / "data"
STEPS = sorted(path.stem for path in (OPTIONS / "preprocessing").glob("*.yaml"))
PRETRAINING = [
    "python_docs",
    "verdict",
    "shakespeare",
    "wikitext2",
    "wikitext103",
    "tinystories",
    "openwebtext",
]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", overrides=[*overrides, "tokenizer=byte"])
    command_of(config)
    return config


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_corpus_is_built(name: str, cache_folder: Path):
    config = composed(f"data={name}")
    data = build(config.data)
    assert type(data) is TextDataModule
    assert data.context_length == config.model.context_length
    assert not cache_folder.exists(), "nothing is fetched before it is needed"


def test_folder_of_own_text_is_training_data(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("My own notes. " * 200)
    data = build(composed("data=text", f"data.path={tmp_path}", "model.context_length=8").data)
    assert type(data) is FilesDataModule
    data.prepare_data()
    data.setup("fit")
    assert data.train_rows > 100


def test_own_text_without_a_path_is_reported():
    with pytest.raises(ConfigError, match=r"data.path: has no value; set it with data.path=…"):
        composed("data=text")


def test_preprocessing_steps_are_chosen_by_name_and_keep_their_order():
    steps = ["lowercase", *(step for step in STEPS if step != "lowercase")]
    assert len(steps) == 6
    data = build(composed(f"data/preprocessing=[{','.join(steps)}]").data)
    names = [type(step).__name__ for step in data.text.preprocessing]
    assert names == [step.title().replace("_", "") for step in steps]
    data = build(composed(f"data/preprocessing=[{','.join(steps[::-1])}]", "data=verdict").data)
    assert [type(step).__name__ for step in data.text.preprocessing] == names[::-1]
    assert not build(composed().data).text.preprocessing, "off by default"


@pytest.mark.parametrize(("words", "is_same"), [((), True), (("data.split_seed=null",), False)])
def test_a_seed_changes_the_validation_part_only_on_request(words, is_same: bool, tmp_path: Path):
    texts = [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, texts)), "utf-8")
    for name in (("data=text",), ("experiment=classify", "task.model.num_classes=2")):
        found = []
        for seed in (1, 2):
            given = (*name, f"data.path={tmp_path}/rows.jsonl", f"seed={seed}")
            data = build(composed(*given, *words, "model.context_length=16").data)
            data.prepare_data()
            data.setup("fit")
            found.append(data.corpus)
        assert (found[0] == found[1]) is is_same
