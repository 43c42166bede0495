import codecs
import gzip
from pathlib import Path

import pytest

from llm.data import text_decoding
from llm.data.corpora.text_files import TextFiles, TrainingFiles
from llm.data.errors import DataError
from llm.data.text_decoding import read_chunks, read_decoded_text, split_lines, suffix

CASES = Path(__file__).parents[1] / "cases"
TEXT = "L'été coûte 3 €.\nZoë 日本 𝄞\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("named", [None, "cp1252"])
def test_a_byte_order_mark_decides_the_encoding(tmp_path: Path, mark, encoding, named):
    (tmp_path / "x.txt").write_bytes(mark + TEXT.replace("\n", "\r\n").encode(encoding))
    assert read_decoded_text(tmp_path / "x.txt", named) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "shift_jis", "gb18030", "utf-8"])
def test_characters_across_chunks_are_decoded(tmp_path: Path, monkeypatch, encoding):
    text = "日本語の\r\n文章\rです\n" * 5
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(text.encode(encoding)))
    monkeypatch.setattr(text_decoding, "CHUNK", 3)
    found = list(read_chunks(tmp_path / "x.txt.gz", encoding))
    assert "".join(found) == "日本語の\n文章\nです\n" * 5
    assert len(found) > 10


def test_given_encoding_is_used_and_bytes_that_are_not_utf8_are_counted():
    assert read_decoded_text(CASES / "cp1252.txt", "cp1252").startswith(
        "L’été, le café coûte 3 € – « déjà vu » dit Zoë."
    )
    with pytest.warns(UserWarning, match=r"1,440 bytes are not UTF-8 .*; set data.encoding to"):
        assert read_decoded_text(CASES / "cp1252.txt").startswith("L��t�, le caf� co�te 3 � �")


def test_file_saved_by_a_windows_shell_is_decoded():
    assert read_decoded_text(CASES / "utf16le_bom.txt").startswith("L’été, le café coûte 3 €")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_nul_characters_without_a_mark_are_refused_with_a_remedy(tmp_path: Path, encoding):
    (tmp_path / "x.txt").write_bytes("plain words".encode(encoding))
    with pytest.raises(DataError, match=r"x.txt: has NUL .*data.encoding=utf-16-le"):
        read_decoded_text(tmp_path / "x.txt")
    assert read_decoded_text(tmp_path / "x.txt", encoding) == "plain words"


def test_a_nul_far_into_a_file_is_found(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(text_decoding, "CHUNK", 100)
    (tmp_path / "x.txt").write_bytes(b"words " * 100 + b"\0")
    with pytest.raises(DataError, match="has NUL characters"):
        read_decoded_text(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"PK\x03\x04rest", "a ZIP archive, as .docx"),
        (b"\x1f\x8brest", "a gzip archive whose name does not end in .gz"),
        (b"\x89PNG\r\n", "a PNG image"),
    ],
)
def test_binary_file_is_refused_with_the_name_of_its_format(
    tmp_path: Path, content: bytes, what: str
):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"x.txt: is {what}.*convert it to .txt, .csv or .jsonl"):
        read_decoded_text(tmp_path / "x.txt")


def test_parquet_is_refused_with_a_remedy():
    with pytest.raises(
        DataError, match=r"x.parquet: is a Parquet file, not text; convert it to .*"
    ):
        read_decoded_text(CASES / "x.parquet")
    way_out = (
        r"x.parquet: .*train on a column of it, use data=huggingface data.source.path=.*x.parquet$"
    )
    with pytest.raises(DataError, match=way_out):
        list(TrainingFiles(CASES / "x.parquet").documents())
    with pytest.raises(DataError, match=r"convert it to [^;]*, or leave it out$"):
        list(TextFiles(CASES / "x.parquet").documents())  # as `llm evaluate` reads test_path


@pytest.mark.parametrize("encoding", ["hex", "nonsense", "a\0b"])
def test_an_unknown_encoding_is_named_with_examples(encoding: str):
    with pytest.raises(DataError, match=r"data.encoding: .* is not an encoding .* cp1252"):
        read_decoded_text(CASES / "cp1252.txt", encoding)


def test_wrong_encoding_is_reported_in_one_line():
    with pytest.raises(DataError, match=r"cp1252.txt: cannot be decoded .*set data.encoding"):
        read_decoded_text(CASES / "cp1252.txt", "utf-16")


def test_only_line_feeds_end_lines():
    text = ["one\ftwo\u2028th", "ree\n\nfo", "ur"]
    assert list(split_lines(text)) == ["one\ftwo\u2028three", "", "four"]


def test_suffix_is_that_of_the_uncompressed_file():
    assert [suffix(Path(name)) for name in ("a.JSONL.GZ", "b.Txt", "c")] == [".jsonl", ".txt", ""]
