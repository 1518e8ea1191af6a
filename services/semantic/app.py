"""Semantic segmentation as a Serve application: a label for every pixel, from text."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from ray.serve import Application
from samclip.v1 import samclip_pb2 as pb

from samclip_core import semantic
from samclip_core.dense import background_words
from samclip_core.errors import InvalidRequest
from samclip_core.memory import keep_memory
from samclip_core.types import ImageFeatures, MaskHead, SemanticMap
from services import deployment, threads, wire
from services.head import Head
from services.limits import check_encoding, check_labels
from services.rpc import rpc
from services.settings import Settings


class Semantic(Head):
    """Reads the dense CLIP map against texts; holds SAM's head for sharper outlines."""

    name = "SemanticSegmentationService"
    application = "semantic"

    def __init__(self, settings: Settings, sam_head: MaskHead | None = None):
        keep_memory()
        # Not above: who starts the service needs this file, and no torch.
        from samclip_core.sam_head import SamHead

        super().__init__(settings)
        self._sam_head = sam_head or SamHead.load(self.directory, settings.device)
        self._device = ThreadPoolExecutor(1, "device")
        self._encoders = ThreadPoolExecutor(os.cpu_count(), "encode")

    @rpc
    async def SegmentText(self, request: pb.SegmentTextRequest) -> pb.SegmentTextResponse:
        check_encoding(request.encoding)
        if request.encoding == pb.LOGITS:
            raise InvalidRequest(
                "regions are made of labels, not of logits: "
                "choose RLE, PNG, POLYGONS or PACKED_BITS"
            )
        check_labels(request.labels, self.settings.max_labels)
        outputs = (pb.CLIP_DENSE, pb.SAM) if request.refine else (pb.CLIP_DENSE,)
        info, features = await self.backbone.features(request.image, *outputs)
        words = background_words(request.labels) if request.background else ()
        text_XD = await self.backbone.class_embeddings(
            (*request.labels, *words), self.config.templates
        )
        found = await threads.run(
            self._device, "mask_decode", self._segment, features, request, text_XD
        )
        regions, label_map = await threads.run(self._encoders, "encode", _encode, found, request)
        return pb.SegmentTextResponse(
            image=info, label_map_png=label_map, regions=regions, model=self.model
        )

    def _segment(
        self, features: ImageFeatures, request: pb.SegmentTextRequest, text_XD: NDArray[np.float32]
    ) -> SemanticMap:
        """``text_XD``: the labels, and after them the background words if those are asked for."""
        labels, scale = request.labels, self.config.logit_scale
        text_LD, background_KD = np.split(text_XD, [len(labels)])
        background = background_KD if len(background_KD) else None
        if request.refine:
            return semantic.refine(
                features, text_LD, labels, scale, self._sam_head, request.background, background
            )
        return semantic.segment_text(
            features, text_LD, labels, scale, request.background, background
        )


def _encode(found: SemanticMap, request: pb.SegmentTextRequest) -> tuple[list[pb.Region], bytes]:
    regions = [wire.to_region(region, request.encoding) for region in found.regions]
    return regions, wire.to_label_map(found, len(request.labels))


def build(settings: Settings) -> Application:
    """The application, for ``serve.run``."""
    return deployment.of(Semantic, settings, gpus=0.25)
