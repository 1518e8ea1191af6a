"""The disk cache of compiled graphs ignores files that are damaged, unsafe or not writable."""

import os
from pathlib import Path

import pytest

from samclip_core.engine.disk import DiskCache


def test_content_is_found_under_its_own_key_alone(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    DiskCache(folder, "weights", "cpu").write("graph", b"machine code")
    assert DiskCache(folder, "weights", "cpu").read("graph") == b"machine code"
    assert DiskCache(folder, "weights", "another cpu").read("graph") is None
    assert DiskCache(folder, "weights", "cpu").read("another graph") is None
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 32, b"x" * 100])
def test_damaged_content_counts_as_absent(tmp_path: Path, damage: bytes) -> None:
    cache = DiskCache(tmp_path / "compiled", "key")
    cache.write("graph", b"machine code")
    (path,) = (tmp_path / "compiled").iterdir()
    path.write_bytes(damage)
    assert cache.read("graph") is None
    cache.write("graph", b"new")
    assert cache.read("graph") == b"new"


def test_a_folder_that_others_can_enter_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "compiled"
    DiskCache(folder, "key").write("graph", b"machine code")
    folder.chmod(0o755)
    cache = DiskCache(folder, "key")
    assert cache.read("graph") is None
    cache.write("graph", b"other")
    assert "expected 0700" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change a folder's owner")
def test_a_folder_below_that_of_another_user_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = tmp_path / "theirs"
    DiskCache(parent / "compiled", "key").write("graph", b"machine code")
    os.chown(parent, 4321, 4321)
    cache = DiskCache(parent / "compiled", "key")
    assert not cache.usable
    assert cache.read("graph") is None
    assert "could replace" in caplog.text


def test_a_link_to_the_folder_is_followed_once(tmp_path: Path) -> None:
    for name in ("compiled", "other"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("compiled")
    cache = DiskCache(tmp_path / "link", "key")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    cache.write("graph", b"machine code")
    assert not [*(tmp_path / "other").iterdir()]
    assert cache.read("graph") == b"machine code"


def test_a_path_that_is_no_folder_is_left_alone_and_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "compiled").write_text("mine")
    for folder in (tmp_path / "compiled", None):
        cache = DiskCache(folder, "key")
        cache.write_json("choice", [1.0])
        assert cache.read_json("choice") is None
    assert (tmp_path / "compiled").read_text() == "mine"


def test_files_unused_for_a_month_are_removed(tmp_path: Path) -> None:
    old, new = (DiskCache(tmp_path / "compiled", key) for key in ("old", "new"))
    for name in ("read", "unread"):
        old.write(name, b"machine code")
    for path in (tmp_path / "compiled").iterdir():
        os.utime(path, (0, 0))
    assert old.read("read") == b"machine code"
    new.write("graph", b"machine code")
    assert [old.read("read"), old.read("unread")] == [b"machine code", None]
    assert new.read("graph") == b"machine code"
