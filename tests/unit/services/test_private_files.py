import os
import socket
import stat
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from services import private_files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_closed_under_any_umask(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "a" / "b"
    before = os.umask(0)
    try:
        if exists:
            folder.mkdir(parents=True)
            folder.parent.chmod(0o755)
        private_files.make_folder(folder)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700


def test_a_folder_that_users_share_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match="is shared by all users"):
        private_files.make_folder(tmp_path)
    assert mode(tmp_path) == 0o1777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
@pytest.mark.parametrize(("rights", "refused"), [(0o2775, False), (0o777, True)])
def test_a_volume_of_another_owner_is_taken_unless_all_users_may_write_to_it(
    tmp_path: Path, rights: int, refused: bool
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 4321, 4321)
    volume.chmod(rights)
    with pytest.raises(PermissionError, match="is shared") if refused else nullcontext():
        private_files.make_folder(volume)
    assert stat.S_IMODE(volume.stat().st_mode) == rights & 0o7777


def test_files_of_some_names_are_closed_except_those_of_another_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.sqlite", "b.sqlite", "c.sqlite-wal", "notes"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o664)
    chmod = Path.chmod

    def of_owner(path: Path, rights: int) -> None:
        if path.name == "b.sqlite":
            raise PermissionError(1, "Operation not permitted")
        chmod(path, rights)

    monkeypatch.setattr(Path, "chmod", of_owner)
    private_files.close_files(tmp_path, "*.sqlite*", "*.usearch")
    assert {file.name: mode(file) for file in tmp_path.iterdir()} == {
        "a.sqlite": 0o600,
        "b.sqlite": 0o664,
        "c.sqlite-wal": 0o600,
        "notes": 0o664,
    }


@pytest.mark.parametrize("rights", [0o777, 0o750, 0o701])
def test_a_folder_that_others_may_enter_is_found(tmp_path: Path, rights: int) -> None:
    folder = tmp_path / "service"
    folder.mkdir(mode=0o700)
    private_files.check_folder(folder)
    folder.chmod(rights)
    with pytest.raises(PermissionError, match=f"has mode {rights:04o}.* expected 0700"):
        private_files.check_folder(folder)


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_socket_fits(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        name = "x" * (private_files.LONGEST_SOCKET - len(f"{place}/samclip-01234567/") + more)
        with private_files.socket_folder(len(f"/{name}")) as made:
            assert Path(made).parent == (Path("/tmp") if more else Path(place))
            with socket.socket(socket.AF_UNIX) as line:
                line.bind(f"{made}/{name}")
        assert not Path(made).exists()


def test_a_folder_that_others_may_replace_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir(mode=0o700)
    tmp_path.chmod(0o1777)  # as /tmp: users may not rename each other's folders
    private_files.check_folder(folder)
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="could replace"):
        private_files.check_folder(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
@pytest.mark.parametrize("use", [private_files.make_folder, private_files.check_folder])
def test_a_folder_below_that_of_another_user_is_found(
    tmp_path: Path, use: Callable[[Path], None]
) -> None:
    folder = tmp_path / "theirs" / "service"
    private_files.make_folder(folder)
    use(folder)
    os.chown(folder.parent, 4321, 4321)
    with pytest.raises(PermissionError, match="could replace"):
        use(folder)
    os.chown(folder, 4321, 4321)
    private_files.make_folder(folder)  # a volume of that user


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
def test_a_folder_of_another_user_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(PermissionError, match="user 65534, expected 0700"):
        private_files.check_folder(folder)
