"""Prompts to masks: SAM's prompt encoder and mask decoder over embeddings that are already there.

P prompts, N points, D width, h w grid, M masks, H W pixels of the original picture.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from samclip_core import checkpoint
from samclip_core.config import SamClipConfig
from samclip_core.cores import Cores, one_core
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import Geometry
from samclip_core.mask_decoder import MaskDecoder, select_masks
from samclip_core.network import SAM_HEAD_PARTS, load_net
from samclip_core.types import ImageFeatures, MaskLogits, MaskSet, Prompt

PROMPTS_PER_CALL = 32  # of the decoder: bounds its memory, about 1 GB at SAM's own size
PROMPTS_PER_CALL_ON_CPU = 4  # its caches are small: among 32 a prompt took twice the time (edge)

T = TypeVar("T")
Request = tuple[ImageFeatures, Sequence[Prompt]]


class _Job(NamedTuple):
    """One prompt of one request."""

    features: ImageFeatures
    prompt: Prompt

    @property
    def layout(self) -> tuple[int, bool, bool]:
        """Prompts share a decoder call only where they make the same number of tokens.

        Padding would be a token as well, which the decoder attends to: another answer than the
        prompt gets alone.
        """
        prompt = self.prompt
        return len(prompt.points), prompt.box is not None, prompt.mask_input_hw is not None


class SamHead:
    """Answers prompts as segment_anything's SamPredictor does, for many images at once.

    Always float32. Holds no state of a request, so threads may share it.
    """

    def __init__(
        self, config: SamClipConfig, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder
    ) -> None:
        self.config = config
        self.min_predicted_iou = config.min_predicted_iou
        self.min_stability = config.min_stability
        self._prompt_encoder = prompt_encoder
        self._mask_decoder = mask_decoder
        self._cores = Cores()
        with one_core(), torch.inference_mode():  # the same for every picture
            self._positions_1Dhw = prompt_encoder.get_dense_pe()

    @classmethod
    def load(cls, name_or_dir: str | Path, device: str = "cpu") -> Self:
        """Load only this head's parts of a checkpoint. Raises CheckpointError."""
        directory = checkpoint.resolve(name_or_dir)
        with one_core():
            net = load_net(directory, SAM_HEAD_PARTS).to(device)
        return cls(checkpoint.read_config(directory), net.prompt_encoder, net.mask_decoder)

    def check(self, features: ImageFeatures, prompts: Sequence[Prompt]) -> None:
        """Raise InvalidPrompt unless every prompt can be answered for that picture."""
        if not prompts:
            raise InvalidPrompt("no prompts: give at least one")
        side = 4 * self.config.grid
        for prompt in prompts:
            prompt.validate(features.geometry)
            mask_hw = prompt.mask_input_hw
            if mask_hw is not None and mask_hw.shape != (side, side):
                raise InvalidPrompt(
                    f"mask_input has shape {mask_hw.shape}, this model's logits are {side}×{side}: "
                    "send the logits of an earlier answer of the same model"
                )

    def segment(
        self, features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool = True
    ) -> list[MaskSet]:
        """Answer the prompts of one picture; see ``segment_batch``."""
        return self.segment_batch([(features, prompts)], multimask)[0]

    def segment_batch(
        self, requests: Sequence[Request], multimask: bool = True, alone: bool = True
    ) -> list[list[MaskSet]]:
        """Answer the prompts of several pictures: for each request a MaskSet per prompt, in order.

        See ``decode_batch``.
        """
        decode = partial(self._answer, multimask=multimask)
        return self._batch(requests, lambda jobs: [m.enlarge_all() for m in decode(jobs)], alone)

    def decode_batch(
        self, requests: Sequence[Request], multimask: bool = True, alone: bool = True
    ) -> list[list[MaskLogits]]:
        """``segment_batch`` without enlarging the masks, whose time grows with the picture.

        ``multimask`` gives the three masks that an ambiguous prompt may mean, otherwise one.
        An answer does not depend on what else is in the batch. ``alone``: one prompt may have all
        cores, as no other is about to come. Features need the SAM embedding. Raises InvalidPrompt.
        """
        return self._batch(requests, partial(self._answer, multimask=multimask), alone)

    def _batch(
        self,
        requests: Sequence[Request],
        answer: Callable[[Sequence[_Job]], list[T]],
        alone: bool,
    ) -> list[list[T]]:
        for features, prompts in requests:
            self.check(features, prompts)
        jobs = [_Job(features, prompt) for features, prompts in requests for prompt in prompts]
        alike: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
        for index, job in enumerate(jobs):
            alike[job.layout].append(index)
        size = self._prompts_per_call(len(jobs))
        calls = [
            indices[start : start + size]
            for indices in alike.values()
            for start in range(0, len(indices), size)
        ]

        def call_of(indices: list[int]) -> list[T]:
            return answer([jobs[index] for index in indices])

        on_cores = partial(self._cores.map, alone=alone)
        side_by_side = on_cores if self._device.type == "cpu" else map
        answers: dict[int, T] = {}
        for call, found in zip(calls, side_by_side(call_of, calls), strict=True):
            answers |= zip(call, found, strict=True)
        ordered = iter(range(len(jobs)))
        return [[answers[next(ordered)] for _ in prompts] for _, prompts in requests]

    def _prompts_per_call(self, prompts: int) -> int:
        if self._device.type != "cpu":
            return PROMPTS_PER_CALL
        return max(1, min(PROMPTS_PER_CALL_ON_CPU, prompts // self._cores.number))

    def _answer(self, jobs: Sequence[_Job], multimask: bool) -> list[MaskLogits]:
        """Of prompts of one layout."""
        logits_PMhw, iou_PM = self._decode(jobs, multimask)
        return [
            self._ranked(job.features.geometry, logits_Mhw, iou_M)
            for job, logits_Mhw, iou_M in zip(jobs, logits_PMhw, iou_PM, strict=True)
        ]

    @torch.inference_mode()
    def _decode(
        self, jobs: Sequence[_Job], multimask: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Low-resolution ``logits_PMhw`` and predicted ``iou_PM`` of prompts of one layout."""
        images = list({id(job.features): job.features for job in jobs}.values())
        rows = {id(features): row for row, features in enumerate(images)}
        embeddings_BDhw = np.stack([_sam_embedding(features) for features in images])
        points, boxes, masks = self._pack(jobs)
        sparse_PND, dense_PDhw = self._prompt_encoder(points=points, boxes=boxes, masks=masks)
        logits_PMhw, iou_PM = self._mask_decoder.decode(
            self._tensor(embeddings_BDhw),
            self._positions_1Dhw,
            sparse_PND,
            dense_PDhw,
            torch.tensor([rows[id(job.features)] for job in jobs], device=sparse_PND.device),
        )
        logits_PMhw, iou_PM = select_masks(logits_PMhw, iou_PM, multimask)
        return logits_PMhw.cpu().numpy(), iou_PM.cpu().numpy()

    def _pack(
        self, jobs: Sequence[_Job]
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None, Tensor | None]:
        """Points with labels, boxes and masks of prompts of one layout, in the model frame."""
        points = boxes = masks = None
        if jobs[0].prompt.points:
            coordinates_PN2 = [
                job.features.geometry.points_to_model(job.prompt.points) for job in jobs
            ]
            labels_PN = [_labels(job.prompt) for job in jobs]
            points = self._tensor(np.stack(coordinates_PN2)), self._tensor(np.array(labels_PN))
        boxes_P4 = [
            job.features.geometry.boxes_to_model(job.prompt.box)[0]
            for job in jobs
            if job.prompt.box is not None
        ]
        if boxes_P4:
            boxes = self._tensor(np.stack(boxes_P4))
        masks_Phw = [
            job.prompt.mask_input_hw for job in jobs if job.prompt.mask_input_hw is not None
        ]
        if masks_Phw:
            masks = self._tensor(np.stack(masks_Phw)[:, None])
        return points, boxes, masks

    @property
    def _device(self) -> torch.device:
        return next(self._mask_decoder.parameters()).device

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self._device)

    def _ranked(
        self, geometry: Geometry, logits_Mhw: NDArray[np.float32], iou_M: NDArray[np.float32]
    ) -> MaskLogits:
        """Best first."""
        order = np.argsort(-iou_M, kind="stable")
        return MaskLogits(geometry, logits_Mhw[order], iou_M[order], self.config.mask_threshold)


def _sam_embedding(features: ImageFeatures) -> NDArray[np.floating]:
    if features.sam_Dhw is None:
        raise ValueError("these features have no SAM embedding: encode with SAM")
    return features.sam_Dhw


def _labels(prompt: Prompt) -> list[int]:
    """SAM's labels: 1 for the object, 0 for what is not."""
    return [int(not flag) for flag in prompt.negative] or [1] * len(prompt.points)
