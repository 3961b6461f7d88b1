"""`fetch` against a real HTTP server on this machine: whole, resumed, broken off, refused, and wrong."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mamllit.data.sources.download import check_recorded, fetch, md5_of

DATA = bytes(range(256)) * 4000
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA at any path but /gone. `ranges`: honour Range; `stop`: close after so many bytes of the
    body; `announced`: the header Content-MD5."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = True
        self.stop: int | None = None
        self.wrong_range = False
        self.announced: str | None = None
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if self.path == "/gone":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(DATA):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + server.wrong_range
            self.send_header("Content-Range", f"bytes {first}-{len(DATA) - 1}/{len(DATA)}")
        if server.announced is not None:
            self.send_header("Content-MD5", server.announced)
        body = DATA[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if server.stop is None else body[: server.stop])

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data.bin"
    assert fetch(server.url, path, MD5) == path
    assert path.read_bytes() == DATA
    assert [entry.name for entry in path.parent.iterdir()] == ["data.bin"]
    fetch(server.url, str(path), MD5)
    assert server.asked == [None]


def test_md5_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert md5_of(tmp_path / "abc") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, A.5


def test_a_partial_file_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA[:1000])
    fetch(server.url, tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert server.asked == ["bytes=1000-"]
    assert not (tmp_path / "data.bin.part").exists()


def test_without_ranges_it_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "data.bin.part").write_bytes(DATA[:1000])
    fetch(server.url, tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_complete_partial_file_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA)
    fetch(server.url, tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA)}-"]


@pytest.mark.parametrize("stale", [b"x" * 1000, b"x" * (len(DATA) + 1)], ids=["shorter", "longer"])
def test_a_partial_file_of_something_else_is_thrown_away(stale: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(stale)
    fetch(server.url, tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert server.asked == [f"bytes={len(stale)}-", None]


def test_a_connection_that_breaks_off_leaves_a_part_to_continue(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    server.stop = 5000
    with pytest.raises(RuntimeError) as caught:
        fetch(server.url, path, MD5)
    message = str(caught.value)
    assert message.startswith(f"the download of {server.url} stopped after 5000 of {len(DATA)} bytes")
    assert message.endswith(f"Try again: it resumes from {path}.part. Or put the file at {path} by hand.")
    assert not path.exists()
    server.stop = None
    fetch(server.url, path, MD5)
    assert path.read_bytes() == DATA
    assert server.asked == [None, "bytes=5000-"]


def test_a_wrong_checksum_is_named_and_the_file_thrown_away(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    with pytest.raises(RuntimeError) as caught:
        fetch(server.url, path, "0" * 32)
    message = str(caught.value)
    assert f"{server.url} sent a file with the wrong checksum: {len(DATA)} bytes with md5 {MD5}" in message
    assert f"expected {'0' * 32}. It was deleted." in message
    assert f"put the file at {path} by hand" in message
    assert list(tmp_path.iterdir()) == []


def test_another_file_in_its_place_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"mine")
    with pytest.raises(RuntimeError) as caught:
        fetch(server.url, path, MD5)
    mine = hashlib.md5(b"mine", usedforsecurity=False).hexdigest()
    assert str(caught.value) == (
        f"{path} exists but is not the file from {server.url}: its md5 is {mine}, expected {MD5}. "
        "Delete it to download it again."
    )
    assert path.read_bytes() == b"mine"
    assert server.asked == []


def test_an_http_error_is_named(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("data.bin", "gone")
    with pytest.raises(RuntimeError) as caught:
        fetch(url, tmp_path / "data.bin", MD5)
    assert str(caught.value) == (
        f"cannot download {url}: the server answered 404 Not Found. Check that the address still exists. "
        f"Or put the file at {tmp_path / 'data.bin'} by hand."
    )


def test_no_server_is_named(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url
    with pytest.raises(RuntimeError) as caught:
        fetch(url, tmp_path / "data.bin", MD5)
    message = str(caught.value)
    assert message.startswith(f"cannot download {url}: no connection (")
    assert message.endswith(f"Check the network. Or put the file at {tmp_path / 'data.bin'} by hand.")


def test_a_server_that_continues_elsewhere_is_refused(server: Server, tmp_path: Path) -> None:
    server.wrong_range = True
    part = tmp_path / "data.bin.part"
    part.write_bytes(DATA[:1000])
    with pytest.raises(RuntimeError, match=r"cannot resume .*: asked for the bytes from 1000 on") as caught:
        fetch(server.url, tmp_path / "data.bin", MD5)
    assert f"Delete {part} and try again" in str(caught.value)
    assert part.read_bytes() == DATA[:1000]


# ---- files whose checksum is not known -----------------------------------------------------------------------------


def test_an_unknown_checksum_is_recorded_and_can_be_checked_later(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path / "data.bin", None)
    assert (tmp_path / "data.bin.md5").read_text() == f"{MD5}  data.bin\n"
    check_recorded(path)
    fetch(server.url, path, None)
    assert server.asked == [None]
    path.write_bytes(DATA[:-1])
    with pytest.raises(ValueError) as caught:
        check_recorded(path)
    assert str(caught.value) == (
        f"{path} has changed since it was downloaded: its md5 is {md5_of(path)} and was {MD5}. Delete it to download it "
        f"again, or delete {path}.md5 if the change is intended"
    )


def test_a_file_without_a_record_passes(tmp_path: Path) -> None:
    (tmp_path / "mine.bin").write_bytes(b"mine")
    check_recorded(tmp_path / "mine.bin")


@pytest.mark.parametrize("form", ["hexadecimal", "base64", "with its name"])
def test_the_checksum_that_the_server_sends_is_checked(form: str, server: Server, tmp_path: Path) -> None:
    right = {"hexadecimal": MD5, "base64": base64.b64encode(bytes.fromhex(MD5)).decode(), "with its name": f"md5:{MD5}"}
    server.announced = right[form]
    fetch(server.url, tmp_path / "right.bin", None)
    server.announced = "0" * 32 if form == "hexadecimal" else base64.b64encode(bytes(16)).decode()
    with pytest.raises(RuntimeError, match=f"wrong checksum: .* with md5 {MD5}, expected {'0' * 32}"):
        fetch(server.url, tmp_path / "wrong.bin", None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["right.bin", "right.bin.md5"]


@pytest.mark.parametrize("announced", ["", "no checksum", "abcd", "x" * 32])
def test_a_header_that_is_no_checksum_is_passed_over(announced: str, server: Server, tmp_path: Path) -> None:
    server.announced = announced
    fetch(server.url, tmp_path / "data.bin", None)
    assert md5_of(tmp_path / "data.bin") == MD5


def test_a_partial_file_is_continued_without_a_known_checksum(server: Server, tmp_path: Path) -> None:
    server.announced = "0" * 32  # of the range, perhaps
    (tmp_path / "data.bin.part").write_bytes(DATA[:1000])
    fetch(server.url, tmp_path / "data.bin", None)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "data.bin.part").symlink_to(tmp_path / "victim")
    with pytest.raises(PermissionError, match=r"data\.bin\.part is a link to .*, which is not followed: remove it"):
        fetch(server.url, tmp_path / "data.bin", MD5)
    assert (tmp_path / "victim").read_text() == "mine"
    assert server.asked == []


def test_the_recorded_checksum_replaces_a_link(server: Server, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "data.bin.md5").symlink_to(tmp_path / "victim")
    fetch(server.url, tmp_path / "data.bin", None)
    assert (tmp_path / "victim").read_text() == "mine"
    check_recorded(tmp_path / "data.bin")
