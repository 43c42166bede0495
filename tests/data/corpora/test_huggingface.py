import json
import sys
from pathlib import Path

import pytest

from llm.data.corpora.huggingface import HuggingFaceDataset
from llm.data.corpora.text import TextDataModule
from llm.data.errors import DataError
from llm.tokenizers.byte import ByteTokenizer

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.writelines(json.dumps({"text": f"Story {i}.", "id": i}) + "\n" for i in range(2500))
        file.write('{"text": "", "id": 0}\n')
    return path


def test_each_row_is_a_document_and_empty_ones_are_left_out(rows: Path):
    source = HuggingFaceDataset("json", data_files=str(rows))
    assert list(source.documents()) == [f"Story {i}." for i in range(2500)]
    assert source.name == "json train"


def test_rows_are_joined_into_articles(tmp_path: Path):
    wiki = [
        " = Robert = \n",
        "",
        " An actor . \n",
        " = = Career = = \n",
        " He = she . \n",
        " = Du Fu = \n",
        " A poet . \n",
    ]
    path = tmp_path / "wiki.json"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in wiki))
    source = HuggingFaceDataset("json", data_files=str(path), document_start=" = [^=]+ = \n$")
    assert list(source.documents()) == ["".join(wiki[:5]), "".join(wiki[5:])]


def test_a_local_folder_of_splits(tmp_path: Path):
    folder = tmp_path / "stories"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps({"story": f"{split} {i}"}) + "\n" for i in range(30))
        )
    train, validation = (
        HuggingFaceDataset(str(folder), split=split, text_field="story")
        for split in ("train", "validation")
    )
    data = TextDataModule(
        train, ByteTokenizer(), context_length=8, batch_size=2, validation=validation
    )
    data.prepare_data()
    data.setup("fit")
    assert data.metadata["train"]["documents"] == data.metadata["validation"]["documents"] == 30
    held_out = data.tokenizer.decode(data._validation.file.tokens.tolist())
    assert held_out == "".join(f"validation {i}<|endoftext|>" for i in range(30))


def test_the_fingerprint_lasts_and_follows_the_rows(rows: Path):
    first = HuggingFaceDataset("json", data_files=str(rows)).fingerprint()
    assert HuggingFaceDataset("json", data_files=str(rows)).fingerprint() == first
    with rows.open("a") as file:
        file.write('{"text": "one more", "id": 1}\n')
    assert HuggingFaceDataset("json", data_files=str(rows)).fingerprint() != first


def test_a_missing_library_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"roneneldan/TinyStories train: .*pip install 'llm-hydra\[datasets\]'"
    ):
        HuggingFaceDataset("roneneldan/TinyStories").fingerprint()


def test_what_is_not_there_is_named(rows: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"has no column 'story'; set text_field to one of .*text"):
        list(HuggingFaceDataset("json", data_files=str(rows), text_field="story").documents())
    with pytest.raises(DataError, match=r"missing validation: cannot be loaded \("):
        list(HuggingFaceDataset(str(tmp_path / "missing"), split="validation").documents())
    with pytest.raises(DataError, match=r"json nothing: cannot be loaded \(.*nothing"):
        list(HuggingFaceDataset("json", split="nothing", data_files=str(rows)).documents())


def test_parquet_and_what_save_to_disk_wrote_are_read_by_their_paths(tmp_path: Path):
    parquet = HuggingFaceDataset(str(Path(__file__).parents[2] / "cases" / "x.parquet"))
    texts = list(parquet.documents())
    assert len(texts) == len(parquet.dataset) > 1
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "one")
    assert list(HuggingFaceDataset(str(tmp_path / "one")).documents()) == texts
    parts = {"train": datasets.Dataset.from_dict({"text": ["a"]})}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "several")
    assert list(HuggingFaceDataset(str(tmp_path / "several")).documents()) == ["a"]
    with pytest.raises(DataError, match=r"several test: cannot be loaded \(.*test"):
        list(HuggingFaceDataset(str(tmp_path / "several"), split="test").documents())
