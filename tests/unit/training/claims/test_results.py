import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from training.claims import results


def test_a_table_has_a_line_for_its_head_a_rule_and_every_row() -> None:
    assert results.table(["a", "b"], [["1", "2"], ["3", "4"]]) == (
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    )


def test_what_was_found_is_written_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write(tmp_path / "new", "claim", {"miou": 0.5}, "text\n", Figure())
    assert json.loads((tmp_path / "new/claim.json").read_text()) == {"miou": 0.5}
    assert (tmp_path / "new/claim.md").read_text() == capsys.readouterr().out == "text\n"
    assert (tmp_path / "new/claim.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_figure_there_is_no_picture(tmp_path: Path) -> None:
    results.write(tmp_path, "claim", {}, "", None)
    assert not (tmp_path / "claim.png").exists()
