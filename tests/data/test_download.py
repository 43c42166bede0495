import contextlib
import http.server
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm import network
from llm.data.download import Download
from llm.data.errors import DataError

TEXT = "I had always thought Jack Gisburn rather a cheap genius.\r\n"
SHA256 = sha256(TEXT.encode()).hexdigest()


def zipped(name: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, content)
    return archive.getvalue()


PAGES = {"/story.txt": TEXT.encode(), "/story.zip": zipped("a/story", TEXT.encode())}


class Server(http.server.SimpleHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.path in PAGES else 404)
        self.end_headers()
        self.wfile.write(PAGES.get(self.path, b""))

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Server.asked = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/story.txt"
    server.shutdown()
    server.server_close()


@pytest.fixture
def dripping(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that sends one byte every 0.1 s, so that no timeout of a socket ends the download."""
    ended = threading.Event()

    def drip(self: Server) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not ended.wait(0.1):
                self.wfile.write(b"x")

    monkeypatch.setattr(Server, "do_GET", drip)
    monkeypatch.setattr(network, "PERIOD", 0.5)
    yield address
    ended.set()


@pytest.mark.parametrize("member", [None, "a/story"])
def test_download_that_is_too_slow_is_aborted(
    member: str | None, dripping: str, cache_folder: Path
):
    with pytest.raises(DataError, match=r"TimeoutError, less than 1,024 bytes a second arrived"):
        Download(dripping, sha256=SHA256, file_name="story.txt", member=member).file()
    assert list(cache_folder.rglob("*story*")) == []


@pytest.mark.parametrize(("arriving", "is_fast"), [([2048] * 4, True), ([2048, 512, 2048], False)])
def test_a_slow_download_may_take_several_periods(tmp_path: Path, monkeypatch, arriving, is_fast):
    """A download that is fast enough in each period (one second here) may take any number of periods."""
    periods = iter(arriving)

    def wait(futures: list[object], seconds: float) -> SimpleNamespace:
        if (size := next(periods, None)) is None:
            return SimpleNamespace(done=futures)
        with (tmp_path / "file").open("ab") as file:
            file.write(bytes(size))
        return SimpleNamespace(done=[])

    monkeypatch.setattr(network, "wait", wait)
    expected = contextlib.nullcontext() if is_fast else pytest.raises(TimeoutError, match="1,024")
    with expected:
        assert network.run_download(lambda: "done", tmp_path, seconds=1) == "done"


def test_download_without_any_data_is_aborted(tmp_path: Path):
    with pytest.raises(TimeoutError):
        network.run_download(lambda: time.sleep(2), tmp_path, seconds=0.1)


def test_a_download_in_a_thread_is_offline_too(tmp_path: Path):
    with network.offline("a run"):
        assert network.run_download(network.is_offline, tmp_path)
        assert network.call_within(5, network.is_offline)


NOWHERE = "http://127.0.0.1:9/story.txt"  # the port of the discard protocol: nobody answers


def test_file_is_downloaded_once_and_cached(address: str, cache_folder: Path):
    for _ in range(2):
        assert list(Download(address, sha256=SHA256, file_name="story.txt").documents()) == [
            TEXT.replace("\r\n", "\n")
        ]
    assert Server.asked == 1
    assert (cache_folder / "story.txt").read_bytes() == TEXT.encode()


def test_file_put_into_the_cache_needs_no_network(cache_folder: Path):
    cache_folder.mkdir()
    (cache_folder / "story.txt").write_bytes(TEXT.encode())
    assert (
        Download(NOWHERE, sha256=SHA256, file_name="story.txt").file() == cache_folder / "story.txt"
    )


def test_read_only_cache_is_read(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    cache_folder.mkdir()
    (cache_folder / "story.txt").write_bytes(TEXT.encode())

    def refuse(*arguments, **settings):
        raise PermissionError(13, "Read-only file system")

    for name in ("touch", "mkdir", "write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    assert (
        Download(NOWHERE, sha256=SHA256, file_name="story.txt").file().read_bytes() == TEXT.encode()
    )


def test_file_with_another_checksum_is_refused_and_not_kept(address: str, cache_folder: Path):
    with pytest.raises(DataError, match=r"is not the published file .*SHA-256") as error:
        Download(address, sha256="0" * 64, file_name="story.txt").file()
    assert "\n" not in str(error.value)
    assert not (cache_folder / "story.txt").exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(address: str, cache_folder: Path):
    cache_folder.mkdir()
    (cache_folder / "story.txt").write_text("damaged")
    assert (
        Download(address, sha256=SHA256, file_name="story.txt").file().read_bytes() == TEXT.encode()
    )


def test_a_member_of_an_archive_is_kept_without_the_archive(address: str, cache_folder: Path):
    published = Download(
        address.replace(".txt", ".zip"), sha256=SHA256, file_name="story.txt", member="a/story"
    )
    for _ in range(2):
        assert published.file() == cache_folder / "story.txt"
    assert (cache_folder / "story.txt").read_bytes() == TEXT.encode()
    assert Server.asked == 1
    assert [file.name for file in cache_folder.iterdir()] == ["story.txt"]


@pytest.mark.parametrize("wrong", ["member", "sha256", "archive"])
def test_wrong_archive_or_member_is_refused_and_not_kept(
    wrong: str, address: str, cache_folder: Path
):
    url = address if wrong == "archive" else address.replace(".txt", ".zip")
    sha256 = "0" * 64 if wrong == "sha256" else SHA256
    member = "b/story" if wrong == "member" else "a/story"
    with pytest.raises(DataError, match=r"is not the published file"):
        Download(url, sha256=sha256, file_name="story.txt", member=member).file()
    assert list(cache_folder.iterdir()) == []


@pytest.mark.parametrize("broken", ["nobody answers", "no such page"])
def test_a_missing_network_is_reported_with_the_file_and_its_folder(
    broken: str, address: str, cache_folder: Path
):
    url = NOWHERE if broken == "nobody answers" else address.replace("story", "other")
    with pytest.raises(DataError) as error:
        Download(url, sha256=SHA256, file_name="story.txt").file()
    message = str(error.value)
    assert url in message
    assert str(cache_folder / "story.txt") in message
    assert "LLM_CACHE" in message
    assert "\n" not in message


def test_the_fingerprint_needs_no_file():
    assert Download(NOWHERE, sha256=SHA256, file_name="story.txt").fingerprint() == SHA256


def test_published_files_are_found_by_name(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_CACHE", str(shared_data))
    verdict = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
    (text,) = Download(NOWHERE, sha256=verdict, file_name="the-verdict.txt").documents()
    assert len(text) == 20_479


@pytest.mark.parametrize("name", ["/etc/passwd", "../thesis.txt", "a/b.txt", ".bashrc", ""])
def test_a_file_name_does_not_lead_out_of_the_cache(name):
    with pytest.raises(ValueError, match="is not a plain name"):
        Download("http://example.org/x", sha256="0" * 64, file_name=name)
