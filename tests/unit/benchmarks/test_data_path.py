import pytest

from benchmarks import data_path


def test_every_kind_of_frame_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(data_path, "keep_memory", lambda _: None)
    monkeypatch.setattr(data_path.cv2, "setNumThreads", lambda _: None)
    monkeypatch.setattr(data_path.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(data_path, "FILES", 2)
    monkeypatch.setattr(data_path, "SA_1B_FILES", 1)
    assert data_path.main(["--rounds", "1"]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3 + 2 * len(data_path.CLIP_SIDES)
    for row in rows:
        _, name, speed, milliseconds, _ = (cell.strip() for cell in row.split("|"))
        assert name
        assert float(speed) > 0
        assert float(milliseconds) > 0
