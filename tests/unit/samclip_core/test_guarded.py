"""What is no regular file of a stated size is refused before it is read, and JSON is counted."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samclip_core import guarded


@pytest.fixture(params=["pipe", "folder", "device", "sparse"])
def refused(request, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 3 * 2**30)
    return path


def test_what_may_never_end_is_refused(refused: Path) -> None:
    with pytest.raises(ValueError, match=rf"{refused} (is|has) .*expected a"):
        guarded.read(refused)


def test_a_file_may_have_as_many_bytes_as_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert guarded.read(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        guarded.read(tmp_path / "file", 4)


@pytest.mark.parametrize("text", ["[" * 10**5, "[" + "{}," * 2**20 + "{}]", "9" * 5000, ""])
def test_a_json_that_is_a_bomb_is_no_json(text: str) -> None:
    for content in (text, text.encode()):
        with pytest.raises(ValueError, match=r"."):
            guarded.parsed(content)


def test_a_file_that_is_made_when_it_is_read_states_no_size() -> None:
    listed = Path("/proc/self/status")
    if not listed.exists():
        pytest.skip("no such files here")
    assert guarded.read(listed).count(b"\n") > 9
    with pytest.raises(ValueError, match="more than 5 bytes"):
        guarded.read(listed, 5)


def test_a_file_is_mapped_that_was_checked(tmp_path: Path, monkeypatch) -> None:
    array, path, checked = np.arange(6).reshape(2, 3), tmp_path / "a.npy", guarded.open_regular
    save(path, array)

    def swapped(path: Path) -> Any:
        file = checked(path)
        path.unlink()
        path.symlink_to("/dev/zero")
        return file

    monkeypatch.setattr(guarded, "open_regular", swapped)
    assert np.array_equal(guarded.mapped(path), array)
    monkeypatch.undo()
    path.unlink()
    for other in (array.astype(object), np.asfortranarray(array)):
        with pytest.raises(ValueError, match="expected rows of numbers"):
            guarded.mapped(save(path, other))


def save(path: Path, array: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)
    return path


def test_an_array_has_the_stated_shape_and_type(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    path = save(tmp_path / "a.npy", array)
    assert np.array_equal(guarded.read_array(path, (2, 3), np.float16), array)
    for other in (array.T, array.astype(np.float32), array.astype(object), array[:1]):
        save(path, other)
        with pytest.raises(ValueError, match="expected"):
            guarded.read_array(path, (2, 3), np.float16)
    for content in (b"", b"PK\x03\x04" + bytes(40), path.read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            guarded.read_array(path, (2, 3), np.float16)
