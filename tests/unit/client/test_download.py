"""Photographs at an address: the client downloads them itself, within limits."""

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from samclip import files
from samclip.images import encode_image

from tests.http_server import Handler, serving

PHOTO = b"\xff\xd8 a photograph " * 1000


SIMPLE: dict[str, dict[str, Any]] = {
    "photo": {"content": PHOTO},
    "page": {"content": b"<html>", "Content_Type": "text/html; charset=utf-8"},
    "large": {"content_length": 2**40},
    "endless": {"content": PHOTO * 200, "content_length": None},
    "short": {"content": PHOTO, "content_length": len(PHOTO) + 1},
    "missing": {"status": 404},
}


class _Site(Handler):
    """Answers by path: those of ``SIMPLE``, /redirect/N, /elsewhere/SCHEME, /slow, …"""

    dripped, stopped = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        kind, _, rest = self.path.lstrip("/").partition("/")
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has had enough
            match kind:
                case "redirect":
                    left = int(rest) - 1
                    self.answer(status=302, Location=f"/redirect/{left}" if left else "/photo")
                case "elsewhere":
                    self.answer(status=302, Location=f"{rest}://{self.headers['Host']}/etc/passwd")
                case "slow":
                    self.answer(content_length=2**20)
                    self._drip(2**20)
                case "dripping":  # its head
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                    self._drip(300)
                    self.dripped.set()
                case "bloated":  # a body of a gigabyte, as long as somebody reads it
                    self.answer(status=int(rest), Location="/photo", content_length=2**30)
                    for _ in range(2**10):
                        self.wfile.write(bytes(2**20))
                case _:
                    self.answer(**SIMPLE[kind])

    def _drip(self, count: int) -> None:
        for _ in range(count):
            if self.stopped.wait(0.01):
                return
            self.wfile.write(b".")


@pytest.fixture
def site() -> Iterator[str]:
    _Site.stopped.clear()
    with serving(_Site) as address:
        yield address
        _Site.stopped.set()


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
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        encode_image(f"{site}/endless")


@pytest.mark.parametrize("path", ["slow", "dripping"])
def test_a_server_that_drips_its_body_or_its_head_is_left(
    site: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(files, "TIMEOUT_S", 0.2)
    with pytest.raises(TimeoutError, match=r"no file within 0\.2 s"):
        encode_image(f"{site}/{path}")
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
def test_a_device_is_not_read() -> None:
    with pytest.raises(ValueError, match="/dev/zero is a pipe, socket or device"):
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
