"""Photographs at an address: the client downloads them itself, within limits."""

import http.server
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from samclip import download
from samclip.images import encode_image

PHOTO = b"\xff\xd8 a photograph " * 1000


class _Site(http.server.BaseHTTPRequestHandler):
    """Answers by path: /photo, /redirect/N, /page, /large, /endless, /short, /slow, /elsewhere."""

    dripped = threading.Event()

    def do_GET(self) -> None:
        kind, _, rest = self.path.lstrip("/").partition("/")
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has had enough
            getattr(self, f"_{kind}", self._missing)(rest)

    def _send(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        headers = {"Content_Type": "image/jpeg", "Content_Length": len(body), **headers}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def _photo(self, _: str) -> None:
        self._send(200, PHOTO)

    def _redirect(self, times: str) -> None:
        left = int(times) - 1
        self._send(302, Location=f"/redirect/{left}" if left else "/photo")

    def _elsewhere(self, scheme: str) -> None:
        self._send(302, Location=f"{scheme}://{self.headers['Host']}/etc/passwd")

    def _page(self, _: str) -> None:
        self._send(200, b"<html>", Content_Type="text/html; charset=utf-8")

    def _large(self, _: str) -> None:
        self._send(200, Content_Length=2**40)

    def _endless(self, _: str) -> None:
        self._send(200, PHOTO * 200, Content_Length=None)

    def _short(self, _: str) -> None:
        self._send(200, PHOTO, Content_Length=len(PHOTO) + 1)

    def _slow(self, _: str) -> None:
        self._send(200, Content_Length=2**20)
        while not self.server.stopped.wait(0.01):  # type: ignore[attr-defined]
            self.wfile.write(b".")

    def _dripping(self, _: str) -> None:
        """Send one byte of the head at a time, for some seconds."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        for _byte in range(300):
            if self.server.stopped.wait(0.01):  # type: ignore[attr-defined]
                return
            self.wfile.write(b".")
        self.dripped.set()

    def _bloated(self, status: str) -> None:
        """Redirect with a body of a gigabyte, as long as somebody reads it."""
        self._send(int(status), Location="/photo", Content_Length=2**30)
        try:
            for _ in range(2**10):
                self.wfile.write(bytes(2**20))
        except OSError:
            pass

    def _missing(self, _: str) -> None:
        self._send(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        server.stopped = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.stopped.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["photo", "photo/with space ü.jpg?size=1&x=%20", "redirect/4"])
def test_a_photograph_is_downloaded(site: str, path: str) -> None:
    assert encode_image(f"{site}/{path}") == PHOTO
    assert encode_image(f"{site}/{path}".replace("http:", "HTTP:")) == PHOTO


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("missing", OSError, "answered 404 Not Found"),
        ("page", ValueError, "a web page, not an image"),
        ("short", OSError, "broke after 16,000 of 16,001 bytes"),
        ("redirect/7", OSError, "redirected more than 5 times"),
        ("elsewhere/file", OSError, "to another kind of address"),
        ("elsewhere/ftp", OSError, "unknown url type: ftp"),
        ("large", ValueError, "larger than 64 MiB"),
    ],
)
def test_what_is_no_photograph_is_refused(
    site: str, path: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        encode_image(f"{site}/{path}")
    assert str(caught.value).startswith(f"{site}/{path}: ")


def test_a_file_of_unknown_size_is_not_read_for_ever(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        encode_image(f"{site}/endless")


def test_a_server_that_drips_is_left(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with pytest.raises(TimeoutError, match=r"no file within 0\.2 s"):
        encode_image(f"{site}/slow")


def test_a_server_that_drips_its_head_is_left(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with pytest.raises(TimeoutError, match=r"no file within 0\.2 s"):
        encode_image(f"{site}/dripping")
    assert not _Site.dripped.is_set()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_body_of_a_redirect_is_not_read(site: str, status: int) -> None:
    tracemalloc.start()
    try:
        assert encode_image(f"{site}/bloated/{status}") == PHOTO
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 * 2**20  # of 1 GiB that the server would send


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no such device")
def test_a_device_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samclip.images.MAX_FILE_BYTES", 2**20)
    with pytest.raises(ValueError, match="/dev/zero: a file larger than 1 MiB"):
        encode_image("/dev/zero")


@pytest.mark.parametrize("url", ["ftp://host/cat.jpg", "file:///etc/passwd", "s3://bucket/cat.jpg"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected an address with http:// or https://, or a path"):
        encode_image(url)


def test_nobody_at_the_address() -> None:
    with pytest.raises(OSError, match=r"http://127.0.0.1:1/cat.jpg: .*refused"):
        encode_image("http://127.0.0.1:1/cat.jpg")


@pytest.mark.parametrize("url", ["http://", "http://[::1/cat.jpg", "http://host:port/cat.jpg"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises((OSError, ValueError)):
        encode_image(url)


def test_a_path_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "http:").mkdir()
    file = tmp_path / "http:/photo.jpg"
    file.write_bytes(PHOTO)
    assert encode_image(str(file)) == PHOTO
