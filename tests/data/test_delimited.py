"""CSV and TSV files in common dialects."""

import warnings

import pytest

from llm.data.delimited import Layout
from llm.data.errors import DataError
from llm.data.malformed import Malformed
from llm.data.record_reader import read_records


@pytest.fixture
def rows(tmp_path):
    """rows(content, …): return the values of the rows of a file with this content."""

    def rows(content, name="a.csv", malformed=None, **layout):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [row.values for row in read_records(path, Layout(**layout), malformed=malformed)]

    return rows


EXPECTED = [{"text": "one; two, three | four", "label": "a"}, {"text": "five", "label": "b"}]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_is_found(rows, separator, name):
    content = f'text{separator}label\n"one; two, three | four"{separator}a\nfive{separator}b\n'
    assert rows(content, name) == EXPECTED


def test_the_delimiter_is_found_without_a_header(rows):
    content = "one, two, six;a\nthree, four;b\nfive;c\n"
    found = rows(content, columns=["text", "label"])
    assert found[0] == {"text": "one, two, six", "label": "a"}


@pytest.mark.parametrize(("delimiter", "given"), [("/", "/"), ("\t", "\\t")])
def test_given_delimiter_is_used(rows, delimiter, given):
    content = f"text{delimiter}label\nx, y; z{delimiter}a\n"
    assert rows(content, delimiter=given) == [{"text": "x, y; z", "label": "a"}]


def test_a_single_column_needs_no_delimiter(rows):
    assert rows("text\none; two\nthree; four\n") == [{"text": "one; two"}, {"text": "three; four"}]


@pytest.mark.parametrize("delimiter", ["", ";;", '"'])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(ValueError, match="cannot separate columns; use one character"):
        Layout(delimiter=delimiter)


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_sep_line_of_excel_sets_the_delimiter(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(first + "text;label\none, two;a\n")
    (row,) = read_records(path)
    assert row.values == {"text": "one, two", "label": "a"}
    assert row.where.endswith("line 3")


def test_empty_columns_without_a_name_are_dropped_without_a_warning(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows("v1, v2 ,,\nham,hello,,\n") == [{"v1": "ham", "v2": "hello"}]


def test_unnamed_columns_with_values_are_reported(rows):
    with pytest.warns(UserWarning, match=r"without a name .* 2 rows have a value there"):
        found = rows(",text\n0,a\n1,b\n")
    assert found == [{"text": "a"}, {"text": "b"}]


def test_quotes_newlines_and_long_fields_are_kept(rows):
    long = "long " * 50_000
    (row,) = rows(f'text,label\n"she said ""no"", then\n{long}",a\n')
    assert row["text"] == f'she said "no", then\n{long}'


def test_nul_characters_are_refused_with_the_encoding_as_remedy(rows):
    with pytest.raises(DataError, match=r"NUL .*data\.encoding="):
        rows("text,label\na\0b,1\n")
    assert rows("text,label\na,1\n".encode("utf-16-le"), encoding="utf-16-le") == [
        {"text": "a", "label": "1"}
    ]


def test_other_encodings_are_named_and_read(rows):
    content = "text,label\ncafé 5 £,1\n".encode("cp1252")
    with pytest.warns(UserWarning, match=r"2 bytes are not UTF-8.*set data\.encoding to"):
        rows(content)
    assert rows(content, encoding="cp1252") == [{"text": "café 5 £", "label": "1"}]
    assert rows("text,label\ncafé,1\n".encode("utf-16")) == [{"text": "café", "label": "1"}]


def test_an_open_quote_is_refused_even_when_skipping(rows):
    """Skipping that row would also skip all rows after it."""
    with pytest.raises(DataError, match=r"line 3: quotes do not match .* 3 lines .*quoting=false"):
        rows('text,label\na,1\n"b,2\nc,3\nd,4\n', malformed=Malformed("skip"))


def test_error_for_rows_of_another_length_names_the_settings_to_change(rows):
    with pytest.raises(DataError, match=r"3 fields, not 2 .*data\.delimiter or data\.quoting"):
        rows("text,label\na, b,1\n")
