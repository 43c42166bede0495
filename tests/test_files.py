"""Files that may be untrusted: bounded reading, atomic writing, and no writing through links."""

import os
import subprocess

import pytest

from llm import files
from llm.config.reading import LARGEST
from llm.files import FileError, read_object


def test_json_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": [1]}', "utf-8")
    assert read_object(tmp_path / "a.json") == {"ä": [1]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "has no a.json"),
        (b"{", r"a\.json: is not JSON"),
        (b"", r"a\.json: is not JSON"),
        (b"\xff", r"a\.json: is not UTF-8 text"),
        (b"[1]", r"a\.json: is not a JSON object"),
        (b"[" * 100_000, r"a\.json: is not JSON"),
    ],
)
def test_file_without_a_json_object_is_refused(content, told, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_object(tmp_path / "a.json")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(LARGEST + 1)  # a sparse file: uses no disk space
    with pytest.raises(FileError, match=r"a\.json: has 268,435,457 bytes"):
        read_object(tmp_path / "a.json")


def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(FileError, match=r"a\.json: is neither a file nor a folder"):
        read_object(tmp_path / "a.json")


def test_yaml_with_aliases_is_refused(tmp_path):
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    (tmp_path / "a.yaml").write_text("\n".join(["a0: &a0 [1]", *lines]))
    with pytest.raises(FileError, match=r"a\.yaml: has YAML aliases"):
        files.read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", ["- 1", "", "a: [", "a: 1\na: 2", "\x00", "[" * 5000])
def test_error_names_the_yaml_file_that_is_not_a_mapping(content, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(FileError, match=r"a\.yaml: "):
        files.read_yaml(tmp_path / "a.yaml")


def test_write_replaces_a_link_within_the_folder(tmp_path):
    (tmp_path / "other.json").write_text("mine")
    (tmp_path / "a.json").symlink_to("other.json")
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "other.json").read_text() == "mine"
    assert read_object(tmp_path / "a.json") == {"a": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "other.json"]


@pytest.mark.parametrize(
    "write", [files.write_text, lambda path, text: files.open_for_appending(path)]
)
def test_nothing_is_written_through_a_link_that_leads_out(write, tmp_path):
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "a.json").symlink_to(tmp_path / "mine")
    with pytest.raises(FileError, match=r"run/a\.json: is a link that leads out of its folder"):
        write(folder / "a.json", "theirs")
    assert (tmp_path / "mine").read_text() == "mine"


def test_partial_file_is_not_opened_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".a.json.{os.getpid()}").symlink_to(tmp_path / "mine")
    files.write_text(tmp_path / "a.json", "theirs")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "theirs"


def test_appending_does_not_change_a_hard_link(tmp_path):
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "a.txt").hardlink_to(tmp_path / "mine")
    with files.open_for_appending(tmp_path / "a.txt") as file:
        file.write("theirs\n")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert (tmp_path / "a.txt").read_text() == "mine\ntheirs\n"


def test_failed_write_keeps_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(UnicodeEncodeError), files.replacing(tmp_path / "a.txt") as partial:
        partial.write_text("half \ud800", "utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_folder_whose_links_stay_inside_is_accepted(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").touch()
    (tmp_path / "run" / "b").symlink_to("a")
    (tmp_path / "link").symlink_to("run")
    files.require_own(tmp_path / "link")
    files.require_own(tmp_path / "missing")


@pytest.mark.parametrize("place", ["a", "checkpoints", "checkpoints/last.ckpt/a"])
def test_a_folder_with_a_link_that_leads_out_is_refused(place, tmp_path):
    link = tmp_path / "run" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path)
    with pytest.raises(FileError, match=f"{place}: is a link that leads out"):
        files.require_own(tmp_path / "run", "checkpoints")


def test_circular_links_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FileError, match="is a link that"):
        files.require_own(tmp_path)


def test_only_partial_files_of_killed_processes_are_deleted(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = {f".last.ckpt.{ended.pid}", f".metrics.csv.{ended.pid}"}
    kept = {
        f".run.json.{os.getppid()}",
        f".x.{os.getpid()}",
        f"notes.{ended.pid}",
        ".run.lock",
        ".last.ckpt.before",
        ".backup.20240101",  # not a name that we write
    }
    for name in left | kept:
        (tmp_path / name).touch()
    (tmp_path / f".folder.{ended.pid}x").mkdir()
    (tmp_path / f".a.json.{ended.pid}").mkdir()
    files.delete_partials(tmp_path, tmp_path / "nowhere")
    assert {path.name for path in tmp_path.iterdir()} == kept | {
        f".folder.{ended.pid}x",
        f".a.json.{ended.pid}",
    }
