"""Files are replaced as a whole, and folders that other users could replace are refused."""

import errno
import fcntl
import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from samclip_core.io.files import (
    LONGEST_SOCKET,
    check_folder,
    check_parents,
    make_private,
    replacing,
    replacing_folder,
    socket_folder,
)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file) as partial:
        partial.write_text("ne")
        assert file.read_text() == "old"
        partial.write_text("new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "file"
    file.write_text("old")

    def write() -> None:
        with replacing(file) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture(params=[0, errno.ENOLCK, errno.ENOSYS])
def locks(request, monkeypatch):
    """Whether the file system has locks."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, "no locks")

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return not request.param


def left_behind(place: Path) -> Path:
    """Make what a process leaves that is killed between the two renames."""
    scratch = place / ".made.partial-abcd_123"
    for name in ("old", "new"):
        (scratch / name).mkdir(parents=True)
        (scratch / name / "kept").write_text(name)
    return scratch


def test_a_folder_that_a_killed_process_was_about_to_replace_comes_back(tmp_path):
    left_behind(tmp_path)
    with suppress(ZeroDivisionError), replacing_folder(tmp_path / "made") as new:
        assert not [*new.iterdir()]
        raise ZeroDivisionError
    assert (tmp_path / "made/kept").read_text() == "old"
    assert [*tmp_path.iterdir()] == [tmp_path / "made"]


def test_two_that_replace_a_folder_at_once_do_not_mix(tmp_path, locks):
    folder = tmp_path / "made"
    scratch = left_behind(tmp_path)
    (tmp_path / ".made.partial").write_text("a file of the user")
    with replacing_folder(folder) as first:
        (first / "first").touch()
        with replacing_folder(folder) as second:
            (second / "second").touch()
        assert [*folder.iterdir()] == [folder / "second"]
    assert [*folder.iterdir()] == [folder / "first"]
    assert scratch.exists() != locks  # without locks its process may live
    assert len([*tmp_path.iterdir()]) == 2 + scratch.exists()


@pytest.mark.parametrize("interrupted", [True, False])
def test_between_the_renames_the_old_folder_comes_back_or_another_one_stays(
    tmp_path, monkeypatch, interrupted
):
    folder, rename = tmp_path / "made", Path.rename
    folder.mkdir()
    (folder / "old").touch()

    def disturbed(self: Path, target: Path) -> None:
        if self.name == "new" and interrupted:
            raise KeyboardInterrupt
        if self.name == "new":
            folder.mkdir()
            (folder / "other").touch()
        rename(self, target)

    monkeypatch.setattr(Path, "rename", disturbed)
    with suppress(KeyboardInterrupt), replacing_folder(folder) as new:
        (new / "mine").touch()
    assert [*folder.iterdir()] == [folder / ("old" if interrupted else "other")]
    assert [*tmp_path.iterdir()] == [folder]


def test_only_files_are_replaced(tmp_path):
    """A device, such as /dev/null, would become a file: root may do that."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(FileExistsError, match="not a regular file"), replacing(tmp_path / name):
            pytest.fail("nothing may be written")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "link"}


def test_a_link_stays_a_link_to_what_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("old")
    (tmp_path / "link").symlink_to("folder/file")
    with replacing(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").readlink() == Path("folder/file")
    assert (tmp_path / "folder/file").read_text() == "new"


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("old")
    (tmp_path / ".file.partial").symlink_to("mine")
    with replacing(tmp_path / "file", 0o600) as partial:
        partial.write_text("new")
    assert (tmp_path / "mine").read_text() == "old"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("mode", "user", "group", "safe"),
    [
        (0o755, 0, 0, True),
        (0o775, 0, 0, True),
        (0o777, 0, 0, False),
        (0o1777, 0, 0, True),  # as /tmp
        (0o775, 0, 4321, False),
        (0o1775, 0, 4321, True),
        (0o700, 4321, 0, False),
        (0o1777, 4321, 0, False),  # its owner may rename everything in it
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
def test_a_folder_that_others_could_replace_is_found(tmp_path, mode, user, group, safe):
    parent = tmp_path / "parent"
    folder = parent / "between" / "folder"
    folder.mkdir(parents=True)
    os.chown(parent, user, group)
    parent.chmod(mode)
    if safe:
        check_parents(folder)
    else:
        with pytest.raises(PermissionError, match=rf"{parent} has mode .* could replace {folder}"):
            check_parents(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
@pytest.mark.parametrize("theirs", ["parent", "link"])
def test_a_way_through_a_link_that_others_could_replace_is_found(tmp_path: Path, theirs: str):
    (tmp_path / "mine" / "folder").mkdir(parents=True, mode=0o700)
    link = tmp_path / "parent" / "link"
    link.parent.mkdir()
    link.symlink_to("../mine")
    for folder in (link, link / "folder", link / ".." / "mine"):
        check_parents(folder)
    os.chown(link.parent if theirs == "parent" else link, 4321, 4321, follow_symlinks=False)
    for folder in (link, link / "folder", link / ".." / "mine"):
        with pytest.raises(PermissionError, match="could replace"):
            check_parents(folder)


def test_new_parents_are_as_private_as_the_folder(tmp_path):
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {0o700}


@pytest.mark.parametrize("rights", [0o777, 0o750, 0o701])
def test_a_folder_that_others_may_enter_is_found(tmp_path: Path, rights: int) -> None:
    folder = tmp_path / "service"
    folder.mkdir(mode=0o700)
    check_folder(folder)
    folder.chmod(rights)
    with pytest.raises(PermissionError, match=f"has mode {rights:04o}.* expected 0700"):
        check_folder(folder)


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_socket_fits(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        name = "x" * (LONGEST_SOCKET - len(f"{place}/samclip-01234567/") + more)
        with socket_folder(len(f"/{name}")) as made:
            assert made.parent == Path("/tmp" if more else place).resolve()
            with socket.socket(socket.AF_UNIX) as line:
                line.bind(f"{made}/{name}")
        assert not made.exists()


def test_sockets_do_not_move_with_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        (tmp_path / "link").symlink_to(place)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
        with socket_folder(0) as made:
            assert made.parent == Path(place).resolve()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
def test_no_socket_is_made_in_a_folder_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tmp_path, 4321, 4321)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PermissionError, match="could replace"), socket_folder(-100):
        pytest.fail("its owner could replace it")
    assert not [*tmp_path.iterdir()]
