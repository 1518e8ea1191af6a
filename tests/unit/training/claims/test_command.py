import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from training.claims import command


def test_what_was_found_is_written_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.write(tmp_path / "new", "claim", {"miou": 0.5}, "text\n", Figure())
    assert json.loads((tmp_path / "new/claim.json").read_text()) == {"miou": 0.5}
    assert (tmp_path / "new/claim.md").read_text() == capsys.readouterr().out == "text\n"
    assert (tmp_path / "new/claim.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_figure_there_is_no_picture(tmp_path: Path) -> None:
    command.write(tmp_path, "claim", {}, "")
    assert not (tmp_path / "claim.png").exists()
