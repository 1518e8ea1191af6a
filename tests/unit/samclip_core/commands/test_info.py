"""``samclip info`` prints the metadata of a checkpoint directory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from samclip_core.commands import info
from samclip_core.config import EDGE
from samclip_core.io import checkpoint
from tests.tiny import CALIBRATION


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / checkpoint.CONFIG).write_text(EDGE.to_json())
    (tmp_path / checkpoint.LINEAGE).write_text(json.dumps({"data": ["bsds500", "camvid"]}))
    (tmp_path / checkpoint.CARD).write_text("# a card\n")
    checkpoint.seal(tmp_path)
    return tmp_path


def test_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == checkpoint.digest(directory)
    assert found["config"] == json.loads(EDGE.to_json())
    assert found["lineage"] == {"data": ["bsds500", "camvid"]}
    assert found["bytes"][checkpoint.CARD] == 9


def test_text(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([str(directory)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"digest: {checkpoint.digest(directory)}" in shown
    assert "  image_size: 384" in shown
    assert "    tower: sentence" in shown
    assert "  data: bsds500, camvid" in shown
    assert any(line.startswith("scores: uncalibrated: they rank") for line in shown)
    checkpoint.calibrate(directory, CALIBRATION, {})
    assert info.describe(directory)["scores"].startswith("calibrated: ")


@pytest.mark.parametrize(
    ("lineage", "licence"),
    [
        ({}, "As far as this project owns"),
        ({"published": [{"licence": "MIT"}] * 2, "sources": {"sam": {}, "clip": {}}}, "MIT"),
        (
            {"published": [{"licence": "MIT"}], "sources": {"sam": {}, "clip": {}}},
            "MIT; of other files: not stated",
        ),
        ({"sources": {"sam": {}}}, "not stated"),
    ],
)
def test_the_licence_of_all_parts(
    directory: Path, lineage: dict[str, object], licence: str
) -> None:
    (directory / checkpoint.LINEAGE).write_text(json.dumps(lineage))
    if lineage:
        config = replace(EDGE, kind="pair", clip_head=None)
        (directory / checkpoint.CONFIG).write_text(config.to_json())
    checkpoint.seal(directory)
    assert info.describe(directory)["licence"].startswith(licence)


def test_an_encoded_vector_is_not_printed() -> None:
    assert info.lines({"mean": "A/+=" * 256}) == ["mean: 1,024 characters, see --json"]
    assert info.lines({"words": "a word " * 100, "sha256": "0" * 64})[1] == "sha256: " + "0" * 64


def test_the_graphs_of_an_export(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "graphs" not in info.describe(directory)
    (directory / checkpoint.INT8_GRAPH).write_bytes(b"a graph")
    digest = checkpoint.seal_graphs(directory, 20, {checkpoint.INT8_GRAPH: {"agreement": 0.99}})
    about = {"agreement": 0.99, "sha256": checkpoint.sha256(directory / checkpoint.INT8_GRAPH)}
    graphs = {"digest": digest, "opset": 20, "files": {checkpoint.INT8_GRAPH: about}}
    assert info.describe(directory)["graphs"] == graphs
    assert info.main([str(directory)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert {f"  digest: {digest}", "  opset: 20", "      agreement: 0.99"} <= set(shown)


def test_a_damaged_checkpoint(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / checkpoint.LINEAGE).write_text("{}")
    assert info.main([str(directory)]) == 1
    assert "damaged" in capsys.readouterr().err
