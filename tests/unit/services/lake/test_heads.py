"""Answers of heads of one's own are columns of a batch, whose plan holds what they depend on."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from samclip_core.errors import HeadError, InvalidRequest
from samclip_core.model import SamClip
from services.lake import answers, worker
from services.lake.heads import BatchHead
from services.lake.part import run_part
from services.lake.plan import PlanMismatch
from tests.lake import NOTHING, planned
from tests.photographs import draw, jpg

CODE = """
import numpy as np
from samclip_core import Head
from samclip_core.errors import InvalidRequest

class Upper(Head):
    outputs = ("CLIP_DENSE", "SAM")

    def load(self, model):
        self.text_TD = model.embed_text(["a dog"])

    def answer(self, features, parameters):
        if features.geometry.height == 61:
            raise InvalidRequest("no face in the picture")
        mask_HW = np.zeros((features.geometry.height, features.geometry.width), bool)
        mask_HW[:30] = True
        yield None
        return {"parts": [{"mask": mask_HW}], "name": "grüße", "count": 3}
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpg(draw(number, 60 + number, 80).image_HW3))
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "upper.py").write_text(CODE)
    return f"{tmp_path}/upper.py:Upper"


def test_a_head_has_a_column_and_its_refusal_harms_no_other(
    photos: Path, spec: str, tmp_path: Path, tiny_model: SamClip
) -> None:
    specs = [spec, "tests.own_heads:Closest"]
    plan = planned(str(tmp_path / "out"), photos, tiny_model, size=2, embed=True, heads=specs)
    opened = answers.opened(tiny_model, plan.values["work"])
    answers.check(tiny_model, opened)
    for number in range(plan.count):
        run_part(tiny_model, plan, number, 2, opened["heads"])
    rows = pq.read_table(tmp_path / "out/images").to_pylist()
    found = [json.loads(row["head_upper"]) for row in rows]
    assert found[1] == {"error": "no face in the picture"}
    assert (found[0]["name"], found[0]["count"]) == ("grüße", 3)
    mask_HW = coco_mask.decode(found[0]["parts"][0]["mask"]).astype(bool)
    assert mask_HW.shape == (60, 80)
    assert mask_HW[:30].all()
    assert not mask_HW[30:].any()
    assert {json.loads(row["head_closest"])["word"] for row in rows} <= {"red", "blue"}
    assert all(row["embedding"] for row in rows)


def test_the_file_of_a_head_is_part_of_the_plan(
    photos: Path, spec: str, tmp_path: Path, tiny_model: SamClip
) -> None:
    plan = planned(str(tmp_path / "out"), photos, tiny_model, heads=[spec])
    needed = worker.needs(tiny_model, [BatchHead(spec, tiny_model)])
    plan.values |= needed
    plan.check(worker.needs(tiny_model, [BatchHead(spec, tiny_model)]))
    (tmp_path / "upper.py").write_text(CODE.replace("30", "31"))
    with pytest.raises(PlanMismatch, match="other heads"):
        plan.check(worker.needs(tiny_model, [BatchHead(spec, tiny_model)]))


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        ("tests.own_heads:Parts", HeadError, "head_parts has an array or a picture"),
        ("tests.own_heads:Missing", HeadError, "no class Missing"),
        ("NEEDS", InvalidRequest, "least: Field required"),
    ],
)
def test_a_head_that_cannot_do_the_work_is_refused_before_it(
    head: str, error: type[Exception], message: str, tmp_path: Path, tiny_model: SamClip
) -> None:
    if head == "NEEDS":
        code = "from dataclasses import dataclass\nfrom samclip_core import Head\n"
        code += "class Needs(Head):\n    @dataclass\n    class Parameters:\n        least: float\n"
        code += "    def answer(self, features, parameters): return {}\n"
        (tmp_path / "needs.py").write_text(code)
        head = f"{tmp_path}/needs.py:Needs"
    with pytest.raises(error, match=message):
        answers.check(tiny_model, answers.opened(tiny_model, NOTHING | {"heads": [head]}))
