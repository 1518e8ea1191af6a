"""Places that never answer, that are no files, or that a list must not name."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from samclip.cli import places
from samclip.images import encode_image

READERS: list[Callable[[str], Any]] = [
    places.read,
    lambda place: places.open_file(place).read(),
    encode_image,
]


@pytest.fixture
def strange(tmp_path: Path) -> dict[str, str]:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "terminal.jpg").symlink_to("/dev/ptmx")
    (tmp_path / "folder.jpg").mkdir()
    found = {name: str(tmp_path / f"{name}.jpg") for name in ("pipe", "link", "terminal", "folder")}
    return found | {"zeros": "/dev/zero"}


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices")
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["pipe", "link", "terminal", "folder", "zeros"])
def test_only_regular_files_are_read(
    strange: dict[str, str], name: str, read: Callable[[str], Any]
) -> None:
    with pytest.raises(ValueError, match="expected a regular file"):
        read(strange[name])


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="sockets with names")
def test_a_socket_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
        with pytest.raises(OSError, match=r"s\.jpg|No such device"):
            encode_image("s.jpg")


@pytest.mark.parametrize("name", ["\0.jpg", "a\0b.jpg"])
def test_a_name_with_a_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="null byte"):
        encode_image(name)


class _Slow(MemoryFileSystem):  # type: ignore[misc]
    """Files of which nothing arrives, or a byte at a time, for ever."""

    protocol = "slow"
    stopped = threading.Event()

    def open(self, path: str, mode: str = "rb", **_: object) -> Any:
        if path.endswith("closed.jpg"):
            self.stopped.wait(60)
        return _Dripping(path.endswith("dripping.jpg"), self.stopped)


class _Dripping:
    def __init__(self, drips: bool, stopped: threading.Event) -> None:
        self._drips, self._stopped = drips, stopped

    def read(self, size: int) -> bytes:
        self._stopped.wait(0.02 if self._drips else 60)
        return b"" if self._stopped.is_set() else b"x"

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def __enter__(self) -> "_Dripping":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsspec.register_implementation("slow", _Slow, clobber=True)
    monkeypatch.setattr(places, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(places, "WAIT_S", 0)
    _Slow.stopped.clear()
    yield
    _Slow.stopped.set()


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("name", ["closed.jpg", "silent.jpg", "dripping.jpg"])
@pytest.mark.parametrize("read", READERS[:2])
def test_a_file_that_never_ends_is_left(name: str, read: Callable[[str], Any]) -> None:
    with pytest.raises(OSError, match="no file within"):
        read(f"slow://x/{name}")


def test_an_error_of_a_file_system_is_one_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied(Exception):
        pass

    def fails(*_: object, **__: object) -> None:
        raise Denied("no credentials")

    monkeypatch.setattr(places, "WAIT_S", 0)
    monkeypatch.setattr(MemoryFileSystem, "open", fails)
    for read in READERS[:2]:
        with pytest.raises(places.Unread, match="Denied: no credentials"):
            read("memory://x/a.jpg")


@pytest.mark.parametrize("place", ["simplecache::memory://x/a.jpg", "filecache::file:///etc/x"])
def test_a_chain_of_protocols_is_no_place(place: str) -> None:
    for read in READERS:
        with pytest.raises(ValueError, match=r"chain of protocols|http:// or https://"):
            read(place)


def test_a_name_with_colons_is_no_chain(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for chain in ("simplecache::", "memory://folder/x::"):
        with pytest.raises((ValueError, FileNotFoundError)):
            places.read(f"{chain}file://{tmp_path}/secret.jpg")


def test_a_file_that_grows_is_read_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samclip.files.MAX_FILE_BYTES", 1000)
    (tmp_path / "x.jpg").write_bytes(bytes(1001))
    for read in (READERS[0], encode_image):
        with pytest.raises(ValueError, match="a file larger than"):
            read(str(tmp_path / "x.jpg"))
