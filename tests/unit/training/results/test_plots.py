"""Charts show the figures that they are given, at their heights."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from training.results import plots


def test_bars_are_as_high_as_their_figures():
    drawing = plots.bars({"a<b": {"voc": 0.8, "ade": 0.2}, "c": {"voc": 0.4}}, "mIoU")
    elements = [*ElementTree.fromstring(drawing)]
    heights = [float(e.get("height")) for e in elements if e.tag.endswith("rect")]
    plane, *bars = heights
    assert [bar / plane for bar in bars] == pytest.approx([1, 0.5, 0.25, 0], abs=1e-3)
    assert {"a<b", "c", "voc", "ade", "mIoU", "0.8"} <= {e.text for e in elements}


def test_curves_rise_from_the_lowest_point_to_the_highest():
    drawing = plots.curves({"joint": {"sam": [(0, 3.0), (10, 1.0), (20, 2.0)]}})
    (line,) = re.findall(r'points="([^"]*)"', drawing)
    x, y = zip(*(map(float, point.split(",")) for point in line.split()), strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])
    assert y[1] - y[2] == pytest.approx(y[2] - y[0])  # down the page is lower
    assert "step 0 to 20" in drawing


def test_figure_3_compares_the_probes_of_models(tmp_path: Path, capsys):
    written = {
        "sam": {"voc_probe_linear_sam_miou": 0.466, "voc_probe_linear_sam_miou_low": 0.4},
        "merge": {"voc_probe_linear_tokens_miou": 0.75},
        "names": {"folders_probe_classify_tokens_top1": 0.805, "digest": "00"},
    }
    for name, content in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    models = [f"SAM={tmp_path}/sam.json", f"merge={tmp_path}/merge.json,{tmp_path}/names.json"]
    assert plots.main([*models, "--out", str(tmp_path / "new/probes.svg")]) == 0
    shown = capsys.readouterr().out
    assert "| figure | SAM | merge |" in shown
    assert "| voc linear miou | 46.6% | 75.0% |" in shown
    assert "| folders classify top1 |  | 80.5% |" in shown
    assert (tmp_path / "new/probes.svg").read_text().count("<rect") == 1 + 4
    for content, told in [("{", "sam.json"), ('{"top1": 1}', "has no figure of a probe")]:
        (tmp_path / "sam.json").write_text(content)
        with pytest.raises(SystemExit):
            plots.main(models)
        assert told in capsys.readouterr().err
