"""Masks from prompts: SAM's prompt encoder and mask decoder over existing image embeddings.

P prompts, N points, D width, h w grid, M masks, H W pixels of the original picture.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.rough import RoughMask
from samclip_core.config import SamClipConfig
from samclip_core.engine.base import Engine, PromptBatch, of_both
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import (
    BOX_MAX,
    BOX_MIN,
    NOT_OBJECT,
    OBJECT,
    PADDING,
    ImageFeatures,
    MaskLogits,
    MaskSet,
    Prompt,
)

PROMPTS_PER_CALL = 32
"""Most prompts per decoder call on a GPU: bounds its memory to about 1 GB at SAM's own size."""
PROMPTS_PER_CALL_ON_CPU = 4
"""Most prompts per decoder call on a CPU: the maps of more would not fit in its caches."""
STABILITY_OFFSET = 0.05
"""Around 0, in low-resolution logits: the thresholds of ``Family.least_stability``."""

ImagePrompts = tuple[ImageFeatures, Sequence[Prompt]]


class _Job(NamedTuple):
    """One prompt of one request."""

    features: ImageFeatures
    prompt: Prompt

    @property
    def layout(self) -> tuple[int, bool, bool]:
        """The key of prompts that may share a decoder call: they have the same number of tokens.

        Padding would add tokens that the decoder attends to, and so change a prompt's answer.
        """
        prompt = self.prompt
        return len(prompt.points), prompt.box is not None, prompt.mask_input_hw is not None


class SamHead:
    """Answers prompts as segment_anything's SamPredictor does, for many images at once.

    Holds no request state, so threads may share it.
    """

    def __init__(self, config: SamClipConfig, engine: Engine) -> None:
        """Use an ``engine`` that has the mask decoder."""
        self.config = config
        self.engine = engine
        self._family = config.family
        self.min_predicted_iou = config.min_predicted_iou
        self.min_stability = config.min_stability
        self._at_once = PROMPTS_PER_CALL_ON_CPU if engine.device == "cpu" else PROMPTS_PER_CALL

    def check(self, features: ImageFeatures, prompts: Sequence[Prompt | RoughMask]) -> None:
        """Raise an InvalidRequest unless there are prompts and each fits the picture.

        Raises it too if the picture was encoded in another frame than the checkpoint's.
        """
        if features.geometry.size != self.config.image_size:
            raise InvalidRequest(
                f"the picture was encoded in a frame of {features.geometry.size} pixels, and masks "
                f"need {self.config.image_size}: encode it without a size"
            )
        if not prompts:
            raise InvalidPrompt("no prompts: give at least one")
        side = self.config.logits_side
        for prompt in prompts:
            prompt.validate(features.geometry)
            mask_hw = None if isinstance(prompt, RoughMask) else prompt.mask_input_hw
            if mask_hw is not None and mask_hw.shape != (side, side):
                raise InvalidPrompt(
                    f"mask_input has shape {mask_hw.shape}, this model's logits are {side}×{side}: "
                    "send the logits of an earlier answer from the same model"
                )

    def segment(
        self,
        features: ImageFeatures,
        prompts: Sequence[Prompt | RoughMask],
        multimask: bool = True,
    ) -> list[MaskSet]:
        """Answer the prompts of one picture in order, as ``decode_batch``. Raises as ``check``."""
        self.check(features, prompts)
        asked = [*self.with_logits(features, prompts)]
        (found,) = self.decode_batch([(features, asked)], multimask)
        return [masks.enlarge_all() for masks in found]

    def with_logits(
        self, features: ImageFeatures, prompts: Iterable[Prompt | RoughMask]
    ) -> Iterator[Prompt]:
        """Yield the prompts, which have passed ``check``, with rough masks as ``mask_input_hw``.

        A rough mask takes time for each pixel of the picture.
        """
        for prompt in prompts:
            if isinstance(prompt, RoughMask):
                yield prompt.to_prompt(self._frame(features), self.config.logits_side)
            else:
                yield prompt

    def decode_batch(
        self, requests: Sequence[ImagePrompts], multimask: bool = True
    ) -> list[list[MaskLogits]]:
        """Answer the prompts of several pictures: per request, one MaskLogits per prompt, in order.

        ``multimask`` gives the three candidate masks of an ambiguous prompt, otherwise one. An
        answer does not depend on the rest of the batch. Features need the SAM embedding, and the
        prompts have passed ``check``.
        """
        jobs = [_Job(features, prompt) for features, prompts in requests for prompt in prompts]
        alike: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
        for index, job in enumerate(jobs):
            alike[job.layout].append(index)
        answers: dict[int, MaskLogits] = {}
        for indices in alike.values():
            for start in range(0, len(indices), self._at_once):
                call = indices[start : start + self._at_once]
                found = self._answer([jobs[index] for index in call], multimask)
                answers |= zip(call, found, strict=True)
        ordered = iter(range(len(jobs)))
        return [[answers[next(ordered)] for _ in prompts] for _, prompts in requests]

    def _answer(self, jobs: Sequence[_Job], multimask: bool) -> list[MaskLogits]:
        """Decode prompts of one layout."""
        images = list({id(job.features): job.features for job in jobs}.values())
        rows = {id(features): row for row, features in enumerate(images)}
        sam_BDhw = np.stack([self._maps(features) for features in images])
        image_P = np.array([rows[id(job.features)] for job in jobs], np.int64)
        logits_PMhw, score_PN = self.engine.decode(sam_BDhw, self._pack(jobs, image_P))
        found = []
        for job, logits_Mhw, score_N in zip(jobs, logits_PMhw, score_PN, strict=True):
            iou_M, object_N = np.split(score_N, [len(logits_Mhw)])
            kept = slice(1, None) if multimask else self._single(logits_Mhw, iou_M)  # as in SAM
            masks = self._ranked(self._frame(job.features), logits_Mhw[kept], iou_M[kept])
            score = float(object_N[0]) if self._family.scores_objects else None
            found.append(replace(masks, object_score=score))
        return found

    def _single(self, logits_Mhw: NDArray[np.float32], iou_M: NDArray[np.float32]) -> slice:
        """Return which mask answers alone: the first, or the best if that is not stable enough."""
        least = self._family.least_stability
        if least and _stability(logits_Mhw[0]) < least:
            best = 1 + int(iou_M[1:].argmax())
            return slice(best, best + 1)
        return slice(0, 1)

    def _maps(self, features: ImageFeatures) -> FloatArray:
        fine = features.output("SAM_FINE") if self.config.fine_dim else None
        return of_both(features.output("SAM"), fine)

    def _pack(self, jobs: Sequence[_Job], image_P: NDArray[np.int64]) -> PromptBatch:
        """Return prompts of one layout as a batch in the model frame."""
        side = self.config.logits_side
        masks_P1mm = np.zeros((len(jobs), 1, side, side), np.float32)
        for job, mask_1mm in zip(jobs, masks_P1mm, strict=True):
            if job.prompt.mask_input_hw is not None:
                mask_1mm[0] = job.prompt.mask_input_hw
        return PromptBatch(
            image_P,
            np.stack([self._points(job) for job in jobs]),
            np.array([self._labels(job.prompt) for job in jobs], np.int64).reshape(len(jobs), -1),
            masks_P1mm,
            np.array([job.prompt.mask_input_hw is not None for job in jobs], np.float32),
        )

    def _frame(self, features: ImageFeatures) -> Geometry:
        """Return the picture in the frame of prompts and masks, which may be a multiple."""
        return replace(features.geometry, size=self.config.prompt_size)

    def _ranked(
        self, geometry: Geometry, logits_Mhw: NDArray[np.float32], iou_M: NDArray[np.float32]
    ) -> MaskLogits:
        """Return masks with the best predicted IoU first."""
        order = np.argsort(-iou_M, kind="stable")
        return MaskLogits(geometry, logits_Mhw[order], iou_M[order], self.config.mask_threshold)

    def _points(self, job: _Job) -> NDArray[np.float32]:
        """Return a prompt's points, then its box's corners, and padding: N×2 in the frame."""
        prompt = job.prompt
        corners = [] if prompt.box is None else [prompt.box[:2], prompt.box[2:]]
        points_N2 = self._frame(job.features).points_to_model([*prompt.points, *corners])
        return np.pad(points_N2, ((0, len(self._labels(prompt)) - len(points_N2)), (0, 0)))

    def _labels(self, prompt: Prompt) -> list[int]:
        """Return the label of each of ``_points``."""
        labels = [NOT_OBJECT if flag else OBJECT for flag in prompt.negative]
        labels = labels or [OBJECT] * len(prompt.points)
        if prompt.box is None:
            return [*labels, PADDING] if labels else []
        return [*labels, BOX_MIN, BOX_MAX, *([PADDING] if self._family.pads_boxes else [])]


def _stability(logits_hw: NDArray[np.float32]) -> float:
    """Return the overlap of the masks at two thresholds; 1 if neither has a cell."""
    smaller, larger = (
        np.count_nonzero(logits_hw > offset) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET)
    )
    return smaller / larger if larger else 1.0
