"""A stage can stop by a figure of samclip eval, which is measured while it trains."""

from dataclasses import replace
from pathlib import Path

import pytest

from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from samclip_core.nn.text_encoder import load_text_encoder
from tests.coco_set import write_coco
from tests.photographs import draw
from training.distillation.while_training import check_stops, measure
from training.evaluation.suite import Options
from training.recipes import Recipe, Run, debug
from training.schedule import Schedule
from training.suites import measure_public


def test_a_network_is_measured_as_it_will_be_served(
    tmp_path: Path, tiny_checkpoint: Path, tiny_model: SamClip
):
    write_coco(tmp_path / "coco", [draw(seed) for seed in range(8)])
    run = Run(recipe=debug(), config=tiny_model.config, data=str(tmp_path), folder=tmp_path)
    measured = measure(
        run, load_text_encoder(tiny_checkpoint), "coco-captions/text_to_image_r5=coco"
    )
    served = measure_public("coco-captions", tiny_model, Options(root=tmp_path / "coco"))
    assert served["text_to_image_r5"] > 0
    assert measured(load_net(tiny_checkpoint)) == pytest.approx(
        served["text_to_image_r5"], abs=1e-6
    )


def stopping(stop_on: str, stage: str = "joint") -> Recipe:
    schedule = Schedule(steps=2, rate=1e-4, stop_on=stop_on)
    return replace(debug(), **{stage: schedule})


def test_what_cannot_be_measured_is_named_before_the_run(tmp_path: Path):
    (tmp_path / "coco").mkdir()
    check_stops(stopping("coco-boxes/ap=coco"), str(tmp_path))
    for stop_on, told in [
        ("coco-boxes", "expected SUITE/FIGURE=FOLDER"),
        ("coca/ap=coco", "joint.stop_on: .*with a suite of samclip eval"),
        ("coco-boxes/ap=lvis", "a folder on a disk; .*lvis is none"),
    ]:
        with pytest.raises(ValueError, match=told):
            check_stops(stopping(stop_on), str(tmp_path))
    with pytest.raises(ValueError, match="a stage that has words"):
        check_stops(stopping("coco-boxes/ap=coco", "sam_teacher"), str(tmp_path))
