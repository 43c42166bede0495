"""A file that is no JSON object is told by its name."""

import pytest

from llm.config.json_object import read_object


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": [1]}', "utf-8")
    assert read_object(tmp_path / "a.json") == {"ä": [1]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "has no a.json"),
        (b"{", r"a\.json is no JSON"),
        (b"\xff", r"a\.json is no JSON"),
        (b"[1]", r"a\.json holds no JSON object"),
    ],
)
def test_anything_else_is_told(content, told, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_object(tmp_path / "a.json")
