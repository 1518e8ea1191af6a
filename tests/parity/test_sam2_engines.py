"""A narrow SAM 2.1 in every engine, on pictures of 1:3 and 3:1."""

from pathlib import Path

import numpy as np
import pytest

from samclip_core.answers.examples import Example
from samclip_core.answers.rough import RoughMask
from samclip_core.commands.export import export, export_sam
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.io.masks import find_runs
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


@pytest.mark.parametrize(("height", "width"), [(256, 64), (64, 256)])
def test_a_picture_is_answered_as_the_square_that_it_becomes(
    directory: Path, height: int, width: int
) -> None:
    """Points, boxes, rough masks, examples and maps, on pictures of 4:1 and 1:4."""
    model = SamClip.load(directory, dtype="float32", engine="torch")
    random, side = np.random.default_rng(0), model.config.image_size
    picture_HW3 = random.integers(0, 256, (height, width, 3), np.uint8)
    square_SS3 = Geometry(height, width, side, squash=True).fit(picture_HW3)
    times = np.array([side // width, side // height])
    y_H, x_W = np.ogrid[:height, :width]
    mask_HW = ((x_W / width - 0.5) / 0.3) ** 2 + ((y_H / height - 0.4) / 0.2) ** 2 < 1
    mask_SS = mask_HW.repeat(times[1], axis=0).repeat(times[0], axis=1)

    def prompts(times: np.ndarray, mask_HW: np.ndarray) -> list[Prompt | RoughMask]:
        x, y = (np.array([width, height]) * times).tolist()
        box, point = (0.2 * x, 0.1 * y, 0.9 * x, 0.8 * y), (0.3 * x, 0.6 * y)
        return [Prompt(points=(point,)), Prompt(box=box), RoughMask.of(mask_HW)]

    ours = model.segment(picture_HW3, prompts(np.ones(2, int), mask_HW))
    theirs = model.segment(square_SS3, prompts(times, mask_SS))
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert_near(one.logits_Mhw, other.logits_Mhw, 2**-8)
    # Enlarged, the edge of a rough mask is smooth, that of the square's has steps.
    assert_near(ours[2].logits_Mhw, theirs[2].logits_Mhw, atol=0.05)
    examples = [
        Example(picture_HW3, find_runs(mask_HW)),
        Example(picture_HW3, Prompt(box=(1, 1, width - 9, height - 9))),
    ]
    scaled = (*times, width * times[0] - 9 * times[0], height * times[1] - 9 * times[1])
    of_square = [
        Example(square_SS3, find_runs(mask_SS)),
        Example(square_SS3, Prompt(box=tuple(map(float, scaled)))),
    ]
    for one, other in zip(
        model.example_vectors(examples), model.example_vectors(of_square), strict=True
    ):
        assert_near(one.clip_D, other.clip_D, 1e-3)
        assert_near(one.sam_E, other.sam_E, 1e-3)
    labels = ["sky", "sea", "sand"]
    map_HW = model.segment_text(picture_HW3, labels).label_map_HW
    map_SS = model.segment_text(square_SS3, labels).label_map_HW
    middle_HW = map_SS[times[1] // 2 :: times[1], times[0] // 2 :: times[0]]
    assert (map_HW == middle_HW).mean() > 0.99


def test_sams_tools_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="SAM's tools read SAM's graphs alone"):
        export_sam(directory, tmp_path / "out")
