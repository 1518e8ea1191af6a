import json
from pathlib import Path

import pytest

from training.claims import figures

POINT = {"coco_multi_box_miou": 0.6, "imagen200_top1": 0.7}


def test_the_curve_shows_every_point_and_the_merge(tmp_path: Path) -> None:
    curve = [{**POINT, "share": 0.0}, {**POINT, "share": 1.0, "imagen200_top1": 0.9}]
    path = tmp_path / "wise_ft.json"
    path.write_text(json.dumps({"curve": curve, "merge": {**POINT, "share": None}}))
    (axes,) = figures.curve(path).axes
    line, star = axes.lines
    assert line.get_xdata().tolist() == pytest.approx([70, 90])
    assert list(star.get_ydata()) == pytest.approx([60])
    assert [text.get_text() for text in axes.texts] == ["0.0", "1.0"]


def test_metrics_are_read_by_name_without_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"digest": "abc", "voc_linear_miou": 0.5}')
    assert figures.named_metrics([f"sam={path}"]) == {"sam": {"voc_linear_miou": 0.5}}
    with pytest.raises(ValueError, match="has no ="):
        figures.named_metrics([str(path)])


def test_a_missing_package_says_how_to_get_it() -> None:
    assert figures.packaged("skimage", "data/coffee.png").is_file()
    with pytest.raises(FileNotFoundError, match="no_such_package is missing"):
        figures.packaged("no_such_package", "data/coffee.png")


def test_the_command_draws_what_was_asked_for(tmp_path: Path, tiny_checkpoint: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"voc_linear_miou": 0.5}')
    out = tmp_path / "out"
    asked = ["--probes", f"merge={metrics}", "--checkpoint", str(tiny_checkpoint)]
    assert figures.main([*asked, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"probes.png", "sheet.png"}
    with pytest.raises(SystemExit):
        figures.main(["--probes", "nameless"])
