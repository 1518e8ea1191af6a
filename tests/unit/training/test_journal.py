from pathlib import Path

import pytest

from samclip_core.io.folder import Folder
from tests.events import scalars
from training import journal, workers
from training.journal import LOSSES, VALIDATION, Journal


def write(folder: Folder, done: int, steps: range) -> None:
    """Write down the steps of a run that resumes after ``done`` and saves after each second one."""
    with Journal(folder, "joint", done, 6) as written:
        for step in steps:
            written.add(LOSSES, step, {"clip": 1 / (1 + step)}, {"learning_rate": 0.5})
            if step % 2:
                written.add(VALIDATION, step + 1, {"loss": step})
                written.save()


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_a_resumed_journal_is_that_of_an_uninterrupted_run(tmp_path: Path, protocol: str):
    whole, resumed = (Folder(f"{protocol}{tmp_path}/{name}") for name in ("whole", "resumed"))
    write(whole, 0, range(6))
    write(resumed, 0, range(5))  # its last state is that after four steps
    assert "\n4\t0.2\n" in resumed.text("joint.losses.tsv")
    write(resumed, 4, range(4, 6))
    for table in ("losses", "validation"):
        assert resumed.text(f"joint.{table}.tsv") == whole.text(f"joint.{table}.tsv")
    assert whole.text("joint.validation.tsv").splitlines()[1:] == ["2\t1", "4\t3", "6\t5"]


def test_small_losses_are_not_rounded_to_nothing(tmp_path: Path):
    """L_SAM starts there: the student is its own teacher."""
    with Journal(Folder(tmp_path), "joint", 0, 1) as written:
        written.add(LOSSES, 0, {"sam": 5.637938e-7})
    assert (tmp_path / "joint.losses.tsv").read_text() == "step\tsam\n0\t5.63794e-07\n"


def test_tensorboard_gets_the_curves(tmp_path: Path):
    folder = Folder(tmp_path)
    write(folder, 0, range(5))
    write(folder, 4, range(4, 6))
    curves = scalars(tmp_path / "tensorboard/joint")
    assert curves["clip"] == pytest.approx({done: 1 / done for done in range(1, 7)})
    assert curves["learning_rate"] == dict.fromkeys(range(1, 7), 0.5)
    assert curves["validation/loss"] == {2: 1, 4: 3, 6: 5}


def test_events_at_a_url_are_uploaded_at_each_save(tmp_path: Path):
    folder = Folder(f"memory://{tmp_path}/run")
    with Journal(folder, "joint", 0, 1000) as written:
        written.add(LOSSES, 0, {"clip": 0.5})
        assert not folder.exists("tensorboard")
        written.save()
        place = folder / "tensorboard" / "joint"
        (name,) = place.system.ls(place.path, detail=False)
        for step in range(1, 1000):  # more than are written at once
            written.add(LOSSES, step, {"clip": 0.5})
    (tmp_path / name.rpartition("/")[2]).write_bytes(place.system.cat_file(name))
    assert scalars(tmp_path) == {"clip": dict.fromkeys(range(1, 1001), 0.5)}


def test_a_long_stage_has_some_thousand_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal, "POINTS", 10)
    with Journal(Folder(tmp_path), "joint", 0, 100) as written:
        for step in range(100):
            written.add(LOSSES, step, {"clip": 0.5})
    assert list(scalars(tmp_path / "tensorboard/joint")["clip"]) == list(range(1, 100, 10))
    assert len((tmp_path / "joint.losses.tsv").read_text().splitlines()) == 101


def test_only_the_first_worker_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "rank", lambda: 1)
    write(Folder(tmp_path / "run"), 0, range(6))
    assert not (tmp_path / "run").exists()
