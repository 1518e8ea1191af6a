"""A narrow SAM 2.1 in every engine, on pictures of 1:3 and 3:1."""

from pathlib import Path

import numpy as np
import pytest

from samclip_core.commands.export import export, export_sam
from samclip_core.errors import InvalidRequest
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests.converted import make_converted
from tests.parity.comparison import assert_near

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(data_root: Path, tmp_path_factory) -> Path:
    made = make_converted("sam2", data_root, tmp_path_factory.mktemp("sam2") / "sam2")
    export(made)
    return made


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_graphs_give_what_torch_gives(directory: Path, engine: str) -> None:
    exact = SamClip.load(directory, dtype="float32", engine="torch")
    model = SamClip.load(directory, dtype="float32", engine=engine)
    for height, width in ((40, 120), (120, 40)):
        image_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        features = exact.encode(image_HW3)
        found = model.encode(image_HW3)
        for name in ("SAM", "SAM_FINE", "CLIP_DENSE"):
            assert_near(found.output(name), features.output(name), 2**-10)
        box = (0.2 * width, 0.1 * height, 0.9 * width, 0.8 * height)
        prompts = [Prompt(points=((0.3 * width, 0.6 * height),)), Prompt(box=box)]
        (answers,) = model.sam_head.decode_batch([(found, prompts)])
        for theirs, ours in zip(
            exact.sam_head.decode_batch([(found, prompts)])[0], answers, strict=True
        ):
            assert_near(ours.logits_Mhw, theirs.logits_Mhw)
            assert_near(ours.predicted_iou_M, theirs.predicted_iou_M)


def test_sams_tools_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="SAM's tools read SAM's graphs alone"):
        export_sam(directory, tmp_path / "out")
