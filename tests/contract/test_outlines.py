"""The outlines that the playground draws and saves are those of the masks, with few corners."""

import json
import shutil
import subprocess
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from services.gateway.app import PAGES

TRACE = """
import {decode} from "./masks.js";
import {outlines} from "./outlines.js";
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const masks = JSON.parse(Buffer.concat(chunks));
console.log(JSON.stringify(masks.map(mask => outlines(decode(mask), ...(mask.size ?? [])))));
"""


def traced(*masks_HW: NDArray[np.bool_], size: tuple[int, int] | None = None) -> list[Any]:
    """Return the rings of each mask, traced at a width and height, as the browser does it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: install Node.js")
    given = [
        {
            "counts": coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))["counts"].decode(),
            "height": mask_HW.shape[0],
            "width": mask_HW.shape[1],
            "size": size,
        }
        for mask_HW in masks_HW
    ]
    command = [node, "--input-type=module", "-e", TRACE]
    ran = subprocess.run(
        command, cwd=PAGES, input=json.dumps(given), capture_output=True, text=True, check=True
    )
    found: list[Any] = json.loads(ran.stdout)
    return found


def blob(seed: int, height: int = 300, width: int = 400) -> NDArray[np.bool_]:
    """Return a smooth mask with islands and holes, also at the border."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 12) > 0.005)


def area(rings: list[Any]) -> float:
    """Return the area inside, from which holes are taken."""
    pairs = [(np.array(ring), np.roll(ring, -1, axis=0)) for ring in rings]
    return sum(float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / 2 for a, b in pairs)


@pytest.mark.parametrize("seed", range(3))
def test_the_outlines_enclose_the_mask_to_about_a_pixel(seed: int) -> None:
    mask_HW = blob(seed)
    (rings,) = traced(mask_HW)
    drawn_HW = np.zeros(mask_HW.shape, np.uint8)
    scaled = [np.round(256 * (np.array(ring) - 0.5)).astype(np.int32) for ring in rings]
    cv2.fillPoly(drawn_HW, scaled, 1, shift=8)
    far_HW = cv2.distanceTransform(
        (cv2.Canny(mask_HW.astype(np.uint8) * 255, 1, 1) == 0).astype(np.uint8), cv2.DIST_L2, 5
    )
    assert far_HW[drawn_HW != mask_HW].max(initial=0) <= 2
    assert area(rings) == pytest.approx(mask_HW.sum(), rel=0.02)
    edge = np.count_nonzero(np.diff(mask_HW, axis=0)) + np.count_nonzero(np.diff(mask_HW, axis=1))
    assert sum(map(len, rings)) < edge / 6  # corners per pixel of staircase


def test_one_pixel_a_rectangle_and_a_hole_have_outlines() -> None:
    one, frame = np.zeros((2, 40, 50), np.bool_)
    one[7, 9] = True
    frame[5:35, 5:45] = True
    frame[15:25, 15:35] = False
    dot, (outer, hole) = traced(one, frame)
    assert area(dot) == 0.5
    assert len(outer) == len(hole) == 4
    assert area([outer]) > 0 > area([hole])
    np.testing.assert_allclose(np.array(outer).max(axis=0), [45, 35], atol=0.5)
    assert traced(np.zeros((4, 4), np.bool_)) == [[]]


def test_an_outline_traced_smaller_has_the_places_of_the_mask() -> None:
    mask_HW = np.zeros((400, 600), np.bool_)
    mask_HW[100:300, 120:480] = True
    (rings,) = traced(mask_HW, size=(300, 200))
    corners = np.concatenate([np.array(ring) for ring in rings])
    np.testing.assert_allclose(corners.min(axis=0), [120, 100], atol=2)
    np.testing.assert_allclose(corners.max(axis=0), [480, 300], atol=2)
