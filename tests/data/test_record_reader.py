import gzip
import json

import pytest

from llm.data.delimited import Layout
from llm.data.errors import DataError
from llm.data.malformed import Malformed
from llm.data.record_reader import read_records


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def written(name, content):
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return name

    return written


def read(*arguments, **settings):
    return [(row.where, row.values) for row in read_records(*arguments, **settings)]


LAYOUT = Layout(["label", "text"], quoting=False)
ROWS = [{"label": "spam", "text": "Win now"}, {"label": "ham", "text": "Tee, um drei? ☕"}]
FORMATS = {
    "a.csv": 'label,text\nspam,Win now\nham,"Tee, um drei? ☕"\n',
    "a.tsv": "label\ttext\nspam\tWin now\nham\tTee, um drei? ☕",
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "a.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "lines.json": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n",
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_format_holds_the_same_rows(write, name, bom, end, suffix):
    file = write(name + suffix, bom + FORMATS[name].replace("\n", end))
    assert [row.values for row in read_records(file)] == ROWS


def test_an_empty_array_holds_no_rows(write):
    assert read(write("a.json", " [ ]\n")) == []


def test_several_files_are_read_in_order(write):
    files = [write("1.jsonl", '{"n": 1}'), write("2.csv", "n\n2")]
    assert read(files) == [("1.jsonl, line 1", {"n": 1}), ("2.csv, line 2", {"n": "2"})]


def test_a_record_is_named_by_the_line_on_which_it_begins(write):
    file = write("a.csv", 'text,label\n"one\ntwo\n\nthree",x\n\nfour,y\n')
    assert read(file) == [
        ("a.csv, line 2", {"text": "one\ntwo\n\nthree", "label": "x"}),
        ("a.csv, line 7", {"text": "four", "label": "y"}),
    ]
    file = write("a.json", '\n[\n  {\n    "n": 1\n  },\n  {"n": 2}, {"n": 3},\n\n  {"n": 4}]\n')
    assert [where for where, _ in read(file)] == [f"a.json, line {n}" for n in (3, 6, 6, 8)]


def test_without_quoting_quotes_are_text(write):
    file = write("a.tsv", 'ham\t"Hm, she said\nspam\tCall "now"\n')
    assert [values["text"] for _, values in read(file, LAYOUT)] == [
        '"Hm, she said',
        'Call "now"',
    ]


def test_only_a_newline_ends_a_line(write):
    """Unicode has other line ends, which are characters of a text."""
    text = "one\u2028two\x85three\x0bfour\x1cfive"
    file = write("a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert read(file)[0][1] == {"text": text}
    file = write("a.csv", f"text,label\n{text},1\n")
    assert read(file)[0][1] == {"text": text, "label": "1"}


def test_long_documents_are_read(write):
    assert read(write("a.csv", "text\n" + "long " * 50_000))[0][1]["text"] == "long " * 50_000


def test_bytes_that_are_not_utf8_are_replaced_with_a_warning(write):
    file = write("a.csv", b"text\ncaf\xe9\n")
    with pytest.warns(UserWarning, match=r"a\.csv: 1 bytes are not UTF-8"):
        assert read(file) == [("a.csv, line 2", {"text": "caf\N{REPLACEMENT CHARACTER}"})]


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("a.csv", "text,label\na,1\nb\nc,3", 3, "1 fields, not 2"),
        ("a.csv", "text,label\na,1\nb,2,2\nc,3", 3, "3 fields, not 2"),
        ("a.csv", 'text,label\na,1\n"b"b,2\nc,3', 3, "quotes do not match"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n{"text": "c"}', 3, "not JSON"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n{"text": "c"}', 2, "list is not a JSON object"),
        ("a.json", '[{"text": "a"},\n"b",\n{"text": "c"}]', 2, "str is not a JSON object"),
    ],
)
def test_a_malformed_row_is_named_or_skipped(write, name, content, line, problem):
    file = write(name, content)
    with pytest.raises(DataError, match=rf"^{name}, line {line}: .*{problem}"):
        read(file)
    malformed = Malformed("skip")
    assert [values["text"] for _, values in read(file, malformed=malformed)] == ["a", "c"]
    assert malformed.count == 1


def test_a_quote_that_is_never_closed_is_named_by_its_own_line(write):
    file = write("a.csv", 'text,label\na,1\n"b,2\nc,3\n')
    with pytest.raises(DataError, match=r"line 3: quotes do not match"):
        read(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"n": 1},\n {"n": 2}\n {"n": 3}]', "line 2: not JSON .*no comma"),
        ("a.json", '[{"n": 1},\n {"n": }]', "line 2: not JSON"),
        ("a.json", '[{"n": 1},', "line 1: not JSON"),
        ("a.json", '[{"n": 1},\n]', "line 2: not JSON"),
        ("a.json", "[", "line 1: not JSON"),
        ("a.json", '[{"n": 1}', "line 1: not JSON .*no comma"),
        ("a.json", '[{"n": 1}] {"n": 2}', "there is more text after the array"),
        ("a.csv", "", "is empty"),
        ("a.csv", "text,text\n1,2", "the header repeats a name"),
        ("a.txt", "text", "has no suffix of"),
        ("a.csv.gz", None, "damaged gzip"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_even_when_skipping(
    write, tmp_path, name, content, message
):
    if content is not None:
        write(name, content)
    elif name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"text\n" * 100)[:-9])
    with pytest.raises(DataError, match=message):
        read(name, malformed=Malformed("skip"))


def test_one_object_over_many_lines_is_refused(write):
    file = write("a.json", json.dumps({"version": 1, "data": [{"n": 1}]}, indent=1))
    with pytest.raises(DataError, match=r"one JSON object, not rows; .* the array under data"):
        read(file, malformed=Malformed("stop"))


def test_mapping_renames_fields_of_rows_and_of_messages(write):
    file = write("a.jsonl", json.dumps({"talk": [{"who": "user", "said": "hi"}], "note": "x"}))
    layout = Layout({"messages": "talk", "role": "who", "content": "said"})
    messages = [{"role": "user", "content": "hi"}]
    assert read(file, layout)[0][1] == {"messages": messages, "note": "x"}


def test_suffix_may_be_in_capitals(write):
    assert read(write("A.CSV", "n\n1\n")) == [("A.CSV, line 2", {"n": "1"})]
