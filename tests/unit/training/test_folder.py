"""Files and folders of a run are written whole, on a disk and at a URL."""

from pathlib import Path

import pytest
import torch

from samclip_core.io.folder import Folder
from training.loop import load_tensors, save_tensors


@pytest.fixture(params=["disk", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """Return the folder of one test on a disk, at a file:// URL, or at a URL without a disk."""
    protocol = {"disk": "", "file": "file://", "memory": "memory://"}[request.param]
    return Folder(f"{protocol}{tmp_path}/run")


def test_files_are_written_and_read_anywhere(folder: Folder):
    states = folder / "states"
    states.check()
    assert not states.exists("a.pt")
    with states.replacing("a.txt") as file:
        file.write_text("α")
    assert states.text("a.txt") == "α"
    save_tensors(states, "a.pt", {"x": torch.arange(3)})
    assert load_tensors(states, "a.pt")["x"].tolist() == [0, 1, 2]
    assert (states.parent.url, folder.exists("states")) == (folder.url, True)


def test_a_file_that_could_not_be_finished_leaves_the_one_before(folder: Folder):
    for text, fails in (("before", False), ("half of it", True)):
        try:
            with folder.replacing("a.txt") as file:
                file.write_text(text)
                if fails:
                    raise InterruptedError
        except InterruptedError:
            assert fails
    assert folder.text("a.txt") == "before"


def test_a_whole_folder_is_filled_twice(folder: Folder):
    for content in ("first", "second"):
        with folder.on_disk() as disk:
            (disk / "checkpoint").mkdir(parents=True, exist_ok=True)
            (disk / "checkpoint/config.json").write_text(content)
    assert (folder / "checkpoint").text("config.json") == "second"
    assert not folder.exists("checkpoint/checkpoint")


@pytest.mark.parametrize(
    ("location", "reason"), [("{}/a file/x", "NotADirectoryError"), ("http://127.0.0.1:1/x", "")]
)
def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path, location: str, reason: str):
    (tmp_path / "a file").write_text("")
    folder = Folder(location.format(tmp_path))
    with pytest.raises(OSError, match=rf"no file could be written to .* again \({reason}.*rights"):
        folder.check()
