"""The ablation trains once per weight, and writes one table and one chart."""

import shutil
from pathlib import Path

import pytest

from tests.coco_set import write_coco
from tests.photographs import draw
from training.claims import ablation


def test_each_weight_is_trained_once_and_measured(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    write_coco(tmp_path / "coco", [draw(0)])
    trained = []

    def train(argv: list[str]) -> int:
        trained.append(argv)
        shutil.copytree(tiny_checkpoint, Path(argv[-1]) / "checkpoint")
        return 0

    monkeypatch.setattr(ablation.train, "main", train)
    out = tmp_path / "out"
    axes = ["--axes", f"coco-boxes/ap50={tmp_path / 'coco'}"]
    given = ["--out", str(out), *axes, "--weights", "1", "100", "--", "--recipe", "debug"]
    for _ in range(2):
        assert ablation.main(given) == 0
    common = ["--recipe", "debug", "--set"]
    assert trained == [
        [*common, f"sam_weight={weight}", "--out", f"{out}/lambda-{weight}"] for weight in (1, 100)
    ]
    text = (out / "ablation.md").read_text()
    assert text in capsys.readouterr().out
    assert "| figure | λ = 1 | λ = 100 |" in text
    assert (out / "ablation.svg").read_text().count("<rect") == 3


def test_a_training_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablation.train, "main", lambda argv: 1)
    axes = ["--axes", f"coco-boxes/ap={tmp_path}"]
    assert ablation.main(["--out", str(tmp_path), *axes]) == 1
