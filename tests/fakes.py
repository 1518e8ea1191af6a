"""Stand-ins whose answers can be computed from their inputs."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.answers.everything import EverythingSettings, Found, Search
from samclip_core.answers.find_regions import FindRegions, regions_of
from samclip_core.answers.steps import Steps, Terms
from samclip_core.geometry import Geometry
from samclip_core.io.masks import mask_box
from samclip_core.regions import Regions
from samclip_core.types import EverythingMask, ImageFeatures, MaskSet, Prompt
from training.data.frames import View

LOGIT = 8.0


class FakeSamHead:
    """A SAM head that knows the object in each cell of the low-resolution logits (0: none).

    A box selects the object whose bounding box fits it best; without a box, the first point
    selects the object under it. ``multimask`` adds the whole scene (predicted IoU 0.75) and an
    unstable speck. ``predicted_iou`` is that of the object's mask.
    """

    min_predicted_iou, min_stability = 0.7, 0.8

    def __init__(self, objects_ss: np.ndarray, predicted_iou: float = 0.95) -> None:
        self.objects_ss = objects_ss
        self.predicted_iou = predicted_iou
        self.calls: list[tuple[ImageFeatures, list[Prompt], bool]] = []

    def segment(
        self, features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool
    ) -> list[MaskSet]:
        self.calls.append((features, list(prompts), multimask))
        for prompt in prompts:
            prompt.validate(features.geometry)
        return [self._answer(features.geometry, prompt, multimask) for prompt in prompts]

    def _answer(self, geometry: Geometry, prompt: Prompt, multimask: bool) -> MaskSet:
        target = self._target(geometry, prompt)
        inside = [(self.objects_ss == target) & (target > 0)]
        iou, stability = [self.predicted_iou if target else 0.1], [0.95]
        if multimask:
            speck_ss = np.zeros_like(inside[0])
            speck_ss[0, 0] = True
            inside += [self.objects_ss > 0, speck_ss]
            iou, stability = [*iou, 0.75, 0.9], [*stability, 0.95, 0.3]
        order = np.argsort(-np.array(iou), kind="stable")
        logits_Mss = np.where(np.stack(inside), LOGIT, -LOGIT).astype(np.float32)[order]
        return MaskSet(
            geometry.masks_to_original(logits_Mss),
            np.array(iou, np.float32)[order],
            np.array(stability, np.float32)[order],
            logits_Mss,
        )

    def _target(self, geometry: Geometry, prompt: Prompt) -> int:
        cell = geometry.size / len(self.objects_ss)
        if prompt.box is not None:
            box = geometry.boxes_to_model([prompt.box])[0] / cell
            targets = np.unique(self.objects_ss[self.objects_ss > 0])
            fits = [_box_iou(box, mask_box(self.objects_ss == target)) for target in targets]
            return int(targets[np.argmax(fits)])
        x, y = (geometry.points_to_model([prompt.points[0]])[0] / cell).astype(int)
        return int(self.objects_ss[y, x])


def _box_iou(left: Sequence[float], right: Sequence[float]) -> float:
    sides = np.minimum(left[2:], right[2:]) - np.maximum(left[:2], right[:2])
    common = float(np.prod(sides.clip(0)))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (left, right)]
    return common / (sum(areas) - common)


def features_of(
    geometry: Geometry, classes_hw: np.ndarray, width: int, sam_side: int = 16
) -> ImageFeatures:
    """Return features whose dense CLIP map holds, in each cell, the unit vector of its class.

    The image vector has the same length along every class.
    """
    dense_Dhw = np.eye(width, dtype=np.float16)[classes_hw].transpose(2, 0, 1)
    sam_Dhw = np.zeros((4, sam_side, sam_side), np.float16)
    pooled_D = np.full(width, width**-0.5, np.float32)
    return ImageFeatures(geometry, sam_Dhw, dense_Dhw, pooled_D)


def with_regions(features: ImageFeatures, sam_head: FakeSamHead) -> ImageFeatures:
    """Return the features with a region for each object of a scene."""
    objects_ss, iou = sam_head.objects_ss, sam_head.predicted_iou
    masks = [
        EverythingMask(features.geometry, np.where(objects_ss == one, LOGIT, -LOGIT), iou, 0.95)
        for one in np.unique(objects_ss[objects_ss > 0])
    ]
    packed = regions_of(features, masks).pack()
    return replace(features, regions_N=np.frombuffer(packed, np.uint8))


def everything(
    terms: Terms, features: ImageFeatures, points_per_side: int, settings: EverythingSettings
) -> Steps[list[Found]]:
    """Search one picture in steps, and return what is found, the better masks first."""
    search = Search(terms, settings)
    for steps in search.rounds(features, points_per_side):
        yield from steps
    return search.found


def in_the_middle(
    asked: FindRegions, features: ImageFeatures, text_XD: np.ndarray, *_: object
) -> Steps[Regions]:
    """Find one region, an ellipse in the middle of any picture: for ``FindRegions.steps``."""
    yield from ()
    side = 32
    rows, columns = features.geometry.grid(side)
    y_s1, x_1s = np.ogrid[0.5:side, 0.5:side]
    inside_ss = 1 - (4 * y_s1 / rows - 2) ** 2 - (4 * x_1s / columns - 2) ** 2
    mask = EverythingMask(features.geometry, LOGIT * inside_ss.astype(np.float32), 0.9, 0.9)
    return regions_of(features, [mask])


def blobs(count: int = 40) -> list[Found]:
    """Return random masks of a picture of 427×640 whose order by cells is not that by pixels."""
    geometry, random = Geometry(427, 640, 128), np.random.default_rng(0)
    features, found = features_of(geometry, np.zeros((16, 16), int), 3), []
    for level in np.linspace(-0.5, 0.5, count, dtype=np.float32):
        rough_hw = random.standard_normal((5, 5)).astype(np.float32)
        logits_hw = cv2.resize(rough_hw, (32, 32), interpolation=cv2.INTER_CUBIC) + level
        mask = EverythingMask(geometry, logits_hw, 1.0, 1.0)
        found.append(Found(mask, features, mask.inside_hw, (0, 0, 0, 0)))
    return found


class ConstantTeacher(nn.Module):
    """A CLIP teacher whose embedding of every photograph and patch is the same."""

    def __init__(self, text_dim: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.pooled_D = F.normalize(torch.randn(text_dim, generator=random), dim=0)
        self.view = View(64)

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        grid = pixels_B3SS.shape[-1] // 32
        pooled_BD = self.pooled_D.expand(len(pixels_B3SS), -1)
        return pooled_BD[..., None, None].expand(-1, -1, grid, grid), pooled_BD
