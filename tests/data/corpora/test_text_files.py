import gzip
import json
import os
import warnings
from pathlib import Path

import pytest

from llm.data.corpora.text_files import SMALL, FilesDataModule, TextFiles
from llm.data.errors import DataError
from llm.tokenizers.byte import ByteTokenizer

CASES = Path(__file__).parents[2] / "cases"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "b.md").write_text("b")
    (folder / "a.txt").write_text("a")
    (folder / "deeper" / "c.txt.gz").write_bytes(gzip.compress(b"c"))
    (folder / "deeper" / "d.jsonl").write_text('{"text": "d1"}\n\n{"text": "d2", "id": 3}\n')
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "script.py").write_text("print()")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / ".git" / "log.txt").write_text("hidden")
    return folder


def documents(*arguments, **settings) -> list[str]:
    return list(TextFiles(*arguments, **settings).documents())


def test_a_folder_is_read_in_order_with_its_sub_folders(notes: Path):
    with pytest.warns(
        UserWarning, match=r"notes: left out 2 files \(1 .png, 1 .py\); set data.suf"
    ):
        assert documents(notes) == ["a", "b", "c", "d1", "d2"]


@pytest.mark.filterwarnings("ignore:.*left out")
def test_other_suffixes(notes: Path):
    assert documents(notes, suffixes=[".py"]) == ["print()"]


def test_a_file_of_any_name(notes: Path):
    assert documents(str(notes / "script.py")) == ["print()"]


def test_patterns_and_lists_name_each_file_once(notes: Path):
    assert documents(f"{notes}/*.txt") == ["a"]
    assert documents(f"{notes}/**/*.txt*") == ["a", "c"]
    assert documents([f"{notes}/b.md", str(notes / "a.txt"), f"{notes}/*.md"]) == ["b", "a"]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path):
    (tmp_path / "draft[1].txt").write_text("draft")
    assert documents(tmp_path / "draft[1].txt") == ["draft"]


def test_the_home_folder(notes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(notes))
    assert documents("~/a.txt") == ["a"]


def test_a_field_of_json_rows(tmp_path: Path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"body": "one"}\n{"body": "two"}'))
    assert documents(tmp_path, text_field="body") == ["one", "two"]


def test_line_ends_and_byte_order_marks(tmp_path: Path):
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert documents(tmp_path) == ["one\ntwo\nthree\n"]


def test_undecodable_bytes_are_replaced_and_counted_in_one_warning(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("Größe, Maß, ñ".encode("latin-1"))
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    source = TextFiles(tmp_path)
    with pytest.warns(UserWarning, match="bytes are not UTF-8") as said:
        texts = list(source.documents())
    assert texts == ["Gr��e, Ma�, �", "caf�"]
    assert source.invalid_bytes == 5
    way_out = "set data.encoding to another encoding, such as cp1252"
    assert [str(warning.message) for warning in said] == [
        f"{tmp_path / 'latin.txt'}: 4 bytes are not UTF-8 and were replaced by U+FFFD; {way_out}",
        f"{tmp_path / 'rows.jsonl'}: 1 bytes are not UTF-8 and were replaced by U+FFFD; {way_out}",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(source.documents()) == texts
    assert source.invalid_bytes == 5


def test_a_replacement_character_in_the_text_is_not_an_invalid_byte(tmp_path: Path):
    (tmp_path / "x.txt").write_text("a�b", encoding="utf-8")
    source = TextFiles(tmp_path)
    assert list(source.documents()) == ["a�b"]
    assert source.invalid_bytes == 0


@pytest.mark.filterwarnings("ignore:.*left out")
def test_files_without_text_are_named_and_left_out(notes: Path):
    (notes / "empty.txt").touch()
    (notes / "blank.md").write_text(" \n")
    with pytest.warns(UserWarning, match=r"(empty.txt|blank.md) is empty and was left out") as said:
        assert documents(notes) == ["a", "b", "c", "d1", "d2"]
    assert sum("is empty" in str(warning.message) for warning in said) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"x.jsonl, line 2: not JSON .*; correct"),
        ("[1]", r"x.jsonl, line 2: list is not a JSON object; write an object"),
        (
            '{"body": "b", "n": 1}',
            r"line 2: has no text in the field 'text'; set data.text_field .*\(body\)",
        ),
        ('{"text": null}', r"line 2: has no text in the field 'text'.*\(it has none\)"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: str, message: str):
    (tmp_path / "x.jsonl").write_text(f'{{"text": "fine"}}\n{row}\n')
    with pytest.raises(DataError, match=message):
        documents(tmp_path)


def test_a_damaged_gzip_file_is_named(tmp_path: Path):
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:-9])
    (tmp_path / "plain.md.gz").write_bytes(b"not gzip at all")
    for name in ("cut.txt.gz", "plain.md.gz"):
        with pytest.raises(
            DataError, match=rf"{name}: is (a damaged|not a) gzip file.*leave it out"
        ):
            documents(tmp_path / name)


def test_paths_that_lead_nowhere_are_named(tmp_path: Path):
    for path in (tmp_path / "missing.txt", tmp_path / "*.txt"):
        with pytest.raises(
            DataError, match=r"data\.path: .*\.txt (does not exist|matches no file); name"
        ):
            documents(path)
    (tmp_path / "a.doc").touch()
    with pytest.raises(DataError, match=r"contains no file that ends in \.txt, .*data.suffixes"):
        documents(tmp_path)


@pytest.mark.filterwarnings("ignore:.*left out.*data.suffixes")
def test_the_fingerprint_follows_the_content_and_not_the_time(notes: Path):
    first = TextFiles(notes).fingerprint()
    os.utime(notes / "a.txt", (1, 1))
    assert TextFiles(notes).fingerprint() == first
    changed = set()
    (notes / "a.txt").write_text("A")
    changed.add(TextFiles(notes).fingerprint())
    (notes / "e.txt").write_text("e")
    changed.add(TextFiles(notes).fingerprint())
    changed.add(TextFiles(notes, text_field="body").fingerprint())
    assert len(changed | {first}) == 4


def test_a_large_file_is_known_by_size_and_time(tmp_path: Path):
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(SMALL + 1)
    first = TextFiles(tmp_path).fingerprint()
    assert TextFiles(tmp_path).fingerprint() == first
    os.utime(tmp_path / "large.txt", (1, 1))
    assert TextFiles(tmp_path).fingerprint() != first


def test_a_data_module_over_ones_own_files(tmp_path: Path):
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({"body": f"Row number {i}."}) + "\n" for i in range(50))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 10)
    data = FilesDataModule(
        tmp_path, tokenizer=ByteTokenizer(), context_length=8, batch_size=2, text_field="body"
    )
    with pytest.warns(UserWarning, match="10 bytes are not UTF-8"):
        data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["tokens"].shape == (2, 8)
    assert data.metadata["train"]["documents"] + data.metadata["validation"]["documents"] == 51
    assert "10 invalid bytes replaced" in data.describe()


@pytest.mark.filterwarnings("ignore:.*is empty")
def test_files_without_any_text_are_an_error_that_names_them(tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    data = FilesDataModule(tmp_path / "empty.txt", tokenizer=ByteTokenizer(), context_length=8)
    with pytest.raises(DataError, match=r"empty.txt: has no text"):
        data.prepare_data()


def test_a_file_shorter_than_a_window_is_named(tmp_path: Path):
    (tmp_path / "short.txt").write_text("a few words")
    data = FilesDataModule(tmp_path / "short.txt", tokenizer=ByteTokenizer(), context_length=64)
    data.prepare_data()
    with pytest.raises(DataError, match=r"short.txt: the train part has 9 tokens"):
        data.setup("fit")


def test_what_a_model_wrote_is_not_read_back(tmp_path: Path):
    """With `data.path=.` beside outputs/, a run would train on its own samples."""
    (tmp_path / "notes.txt").write_text("mine")
    run = tmp_path / "outputs" / "pretraining" / "first"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "samples.txt").write_text("the model's")
    assert [file.name for file in TextFiles(str(tmp_path)).files] == ["notes.txt"]


def test_suffixes_match_in_capitals(tmp_path: Path):
    for name in ("A.TXT", "C.Md", "b.txt"):
        (tmp_path / name).write_bytes((CASES / "upper" / name).read_bytes())
    (tmp_path / "e.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "row"}'))
    names = [file.name for file in TextFiles(tmp_path).files]
    assert names == ["A.TXT", "C.Md", "b.txt", "e.JSONL.GZ"]
    assert documents(tmp_path)[-1] == "row"
    with pytest.raises(
        DataError,
        match=r"d.TXT.GZ: is not a gzip file, although its name ends in .gz .*; rename it",
    ):
        documents(CASES / "upper")


@pytest.mark.parametrize(
    ("name", "number", "first"),
    [("corpus.json", 40, "A sat fell"), ("corpus.csv", 60, "Cat bird")],
)
def test_structured_files_are_rows_of_a_field_or_refused_with_its_key(
    name: str, number: int, first: str
):
    texts = documents(CASES / name)
    assert len(texts) == number
    assert texts[0].startswith(first)
    with pytest.raises(
        DataError, match=r"has no text in the field 'body'; set data.text_field .*text"
    ):
        documents(CASES / name, text_field="body")


def test_newline_delimited_json_by_its_other_name(tmp_path: Path):
    (tmp_path / "x.ndjson").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert documents(tmp_path / "x.ndjson") == ["one", "two"]


def test_rows_of_another_encoding(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes('{"text": "né"}\n{"text": "é"}\n'.encode("utf-16"))
    assert documents(tmp_path) == ["né", "é"]


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_a_separator_divides_a_file_and_is_named_where_it_is_not_used(monkeypatch, chunk: int):
    monkeypatch.setattr("llm.data.text_decoding.CHUNK", chunk)
    whole = (CASES / "eot.txt").read_text("utf-8")
    expected = [text for text in whole.split("<|endoftext|>") if text.strip()]
    assert documents(CASES / "eot.txt", document_separator="<|endoftext|>") == expected
    assert len(expected) > 50
    with pytest.warns(
        UserWarning, match=r"eot.txt: <\|endoftext\|> occurs 59 times .*_separator='<"
    ):
        assert documents(CASES / "eot.txt") == [whole]


def test_files_are_read_in_pieces(tmp_path: Path, monkeypatch):
    """Blank documents are skipped; white space at the edge of a piece is kept."""
    monkeypatch.setattr("llm.data.text_decoding.CHUNK", 2)
    (tmp_path / "a.txt").write_text("   \n a  b  \n")
    (tmp_path / "blank.txt").write_text(" \n" * 9)
    with pytest.warns(UserWarning, match="blank.txt is empty"):
        pieces = list(TextFiles(tmp_path).pieces())
    assert len(pieces) > 3
    assert "".join(text for text, _ in pieces) == "   \n a  b  \n"
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_dataset_on_disk_is_refused_with_a_remedy(tmp_path: Path):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match=r"save_to_disk wrote.*data=huggingface data.source.path="):
        documents(tmp_path)


def test_columns_of_text_are_read_as_delimiter_and_quoting_say(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text/label\n"one, she said/1\n')
    files = TextFiles(path, delimiter="/", quoting=False)
    assert list(files.documents()) == ['"one, she said']
    with pytest.raises(DataError, match=r"data\.quoting=false"):
        list(TextFiles(path).documents())
    assert files.fingerprint() != TextFiles(path).fingerprint()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([], "data.path: is empty; name a file, a folder or a pattern"),
        (
            "notse",
            r"data.path: notse does not exist; did you mean notes\?",
        ),
    ],
)
def test_a_path_that_names_nothing_is_refused(notes: Path, monkeypatch, path, message: str):
    monkeypatch.chdir(notes.parent)
    with pytest.raises(DataError, match=message):
        documents(path)
