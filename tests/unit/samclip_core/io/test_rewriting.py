"""A calibration that ends at any step leaves the old checkpoint or the new one, whole."""

import errno
import itertools
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samclip_core.calibration import Calibration
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint, manifest
from tests.tiny import CALIBRATION

OTHER = replace(CALIBRATION, text_weight=3.0)


class Killed(BaseException):
    """Raised by each step after the last one, as a killed process takes no further step."""


class Steps:
    """Counts what is done to the files of a folder, and ends at one of them with an error."""

    def __init__(self) -> None:
        self.folder, self.last, self.taken = "", -1, 0
        self.error: type[BaseException] | BaseException = Killed
        sys.addaudithook(self._look)  # for good: Python cannot remove it

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or event not in ("open", "os.rename", "os.remove", "fcntl.flock"):
            return
        if event != "fcntl.flock" and not str(arguments[0]).startswith(self.folder):
            return
        self.taken += 1
        once = isinstance(self.error, OSError)
        if self.taken == self.last or (self.taken > self.last >= 0 and not once):
            raise self.error

    @contextmanager
    def ending(self, folder: Path, last: int, error: Any = Killed) -> Iterator[None]:
        self.folder, self.last, self.taken, self.error = str(folder), last, 0, error
        try:
            yield
        finally:
            self.folder = ""


STEPS = Steps()


@pytest.fixture
def copies(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield the folders of new copies of a checkpoint."""
    return (Path(shutil.copytree(tiny_checkpoint, tmp_path / f"{i}")) for i in range(100))


def calibration_of(directory: Path) -> Calibration:
    """Return the calibration after checking every file."""
    checkpoint.verify(directory)
    config, digest = checkpoint.read_sealed_config(directory)
    assert digest == checkpoint.digest(directory)
    return config.fitted


@pytest.mark.parametrize(
    "error", [Killed, OSError(errno.ENOSPC, "no space left")], ids=["killed", "disk full"]
)
def test_a_calibration_that_ends_at_any_step_is_there_or_not(copies, error) -> None:
    found, last = [], 0
    for last, directory in enumerate(copies, start=1):
        weights = (directory / checkpoint.WEIGHTS).read_bytes()
        with STEPS.ending(directory, last, error):
            try:
                checkpoint.calibrate(directory, OTHER, {"data": "others"})
            except (Killed, OSError):
                pass
            else:
                break
        assert calibration_of(directory) in (CALIBRATION, OTHER)
        found.append(calibration_of(directory) == OTHER)
        checkpoint.calibrate(directory, OTHER, {"data": "others"})  # whatever was left behind
        assert calibration_of(directory) == OTHER
        assert not [path for path in directory.iterdir() if path.name[0] == "."]
        assert (directory / checkpoint.WEIGHTS).read_bytes() == weights
    assert last > 10
    assert sorted(found) == found
    assert {*found} == {False, True}


def test_a_change_that_was_not_completed_is_completed(copies, monkeypatch) -> None:
    directory = next(copies)
    monkeypatch.setattr(Path, "replace", _only(".partial", Path.replace))
    with pytest.raises(Killed):
        checkpoint.calibrate(directory, OTHER, {})
    monkeypatch.undo()
    assert calibration_of(directory) == OTHER
    stale = (directory / checkpoint.CONFIG).read_text()
    checkpoint.settle(directory)
    assert (directory / checkpoint.CONFIG).read_text() != stale
    assert calibration_of(directory) == OTHER


def _only(suffix: str, replaced: Any) -> Any:
    def replace_if(path: Path, target: Path) -> Path:
        if path.suffix != suffix:
            raise Killed
        return Path(replaced(path, target))

    return replace_if


def test_readers_see_one_calibration_or_the_other_while_two_write(copies) -> None:
    directory, stop = next(copies), threading.Event()
    digests = {checkpoint.digest(directory): CALIBRATION}

    def write(calibration: Calibration) -> None:
        for _ in range(20):
            digests[checkpoint.calibrate(directory, calibration, {})] = calibration

    def read() -> int:
        for count in itertools.count(1):
            config, digest = checkpoint.read_sealed_config(directory)
            assert digests.setdefault(digest, config.fitted) == config.fitted
            if stop.is_set():
                return count
        raise AssertionError

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, one) for one in (CALIBRATION, OTHER)]
        reading = [pool.submit(read) for _ in range(2)]
        wait(writing)
        stop.set()
        assert all(one.result() is None for one in writing)
        assert all(one.result() for one in reading)
    assert calibration_of(directory) in (CALIBRATION, OTHER)


def test_a_reader_is_not_misled_by_a_change_that_is_taken_back(copies, monkeypatch) -> None:
    """The manifest is as before, and the file that was read meanwhile is not."""
    directory, read = next(copies), Path.read_bytes
    checkpoint.calibrate(directory, CALIBRATION, {})

    def overtaken(path: Path) -> bytes:
        if path.name != checkpoint.CONFIG:
            return read(path)
        monkeypatch.undo()
        checkpoint.calibrate(directory, OTHER, {})
        content = read(path)
        checkpoint.calibrate(directory, CALIBRATION, {})
        return content

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    assert checkpoint.read_config(directory).fitted == CALIBRATION


def test_a_link_to_the_folder_and_links_in_it_are_followed(copies, tmp_path) -> None:
    directory, elsewhere = next(copies), tmp_path / "elsewhere.json"
    (tmp_path / "link").symlink_to(directory)
    (directory / checkpoint.CONFIG).rename(elsewhere)
    (directory / checkpoint.CONFIG).symlink_to(elsewhere)
    checkpoint.calibrate(tmp_path / "link", OTHER, {})
    assert calibration_of(directory) == OTHER
    assert (directory / checkpoint.CONFIG).is_symlink()


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK])
def test_a_file_system_that_locks_no_folders_is_enough(copies, code: int) -> None:
    """NFS gives these errors."""
    directory = next(copies)
    with STEPS.ending(directory, 2, OSError(code, "no locks")):
        checkpoint.calibrate(directory, OTHER, {})
    assert STEPS.taken > 2
    assert calibration_of(directory) == OTHER


def test_a_read_only_folder_is_refused_and_stays(copies, monkeypatch) -> None:
    directory = next(copies)

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        checkpoint.calibrate(directory, OTHER, {})
    assert calibration_of(directory) == CALIBRATION


def test_a_damaged_file_is_still_refused(copies) -> None:
    directory = next(copies)
    (directory / checkpoint.CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is missing or differs"):
        checkpoint.read_config(directory)
    with pytest.raises(CheckpointError, match=r"config\.json is missing or differs"):
        manifest.rewrite(directory, lambda: {checkpoint.CONFIG: "", **_read(directory)})


def _read(directory: Path) -> dict[str, str]:
    return {checkpoint.LINEAGE: checkpoint.read_file(directory, checkpoint.CONFIG).decode()}
