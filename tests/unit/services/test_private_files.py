"""Files and folders of the service are closed to other users."""

import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from samclip_core.io.files import check_folder
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
@pytest.mark.parametrize("use", [private_files.make_folder, check_folder])
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
