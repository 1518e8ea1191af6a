"""Classification as a Serve application: which of these labels fits an image best."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.zero_shot import classify
from services.batching import threads
from services.deployment import replica
from services.heads.head import Head
from services.request import wire
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.limits import (
    check_areas,
    check_images,
    check_labels,
    check_scores,
    check_templates,
    check_top_k,
)
from services.request.rpc import rpc
from services.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application


class _Embedded(NamedTuple):
    """An image, or a part of it: its vector, and the precision that it was computed in."""

    info: pb.ImageInfo
    vector_D: NDArray[np.floating]
    dtype: str


class Classification(Head):
    """Compares the CLIP embeddings of images, or of parts of one, with those of the labels."""

    name = "ClassificationService"
    application = "classification"

    @rpc
    async def Classify(
        self, request: pb.ClassifyRequest, context: RequestContext
    ) -> pb.ClassifyResponse:
        check_images(request.images, self.settings.max_images)
        check_areas(request.areas, len(request.images), self.settings.max_prompts)
        check_labels(request.labels, self.settings.max_labels)
        check_templates(request.templates, request.labels, self.settings.max_labels)
        check_top_k(request.top_k)
        check_scores(len(request.areas) or len(request.images), request.labels, request.top_k)
        templates = tuple(request.templates) or self.config.templates
        # The images first: the backbone may refuse them.
        if request.areas:
            info, dtype, areas_D = await self.embed_areas(context, request.images[0], request.areas)
            embedded = [_Embedded(info, area_D, dtype) for area_D in areas_D]
        else:
            embedded = await self._embed(context, request.images)
        text_LD = await self.backbone.class_embeddings(context, request.labels, templates)
        labels, scale, top_k = [*request.labels], self.config.logit_scale, request.top_k

        def made() -> Iterator[pb.ClassifyResult]:
            for one in embedded:
                scores = classify(one.vector_D, text_LD, labels, scale, top_k)
                yield pb.ClassifyResult(image=one.info, scores=wire.to_scores(scores))

        results = await threads.drain(self._decoders, "decode", made())
        dtypes = {one.dtype for one in embedded}
        model = self.model_in(dtypes.pop() if len(dtypes) == 1 else "")
        return pb.ClassifyResponse(results=results, model=model)

    async def _embed(self, context: RequestContext, images: Sequence[pb.Image]) -> list[_Embedded]:
        """Embed the images together, so that they share batches."""

        async def embed(image: pb.Image) -> _Embedded:
            info, features = await self.backbone.features(
                context, image, pb.CLIP_POOLED, size=self.config.size_of("classify")
            )
            assert features.clip_pooled_D is not None
            return _Embedded(info, features.clip_pooled_D, features.dtype)

        return await each(embed, images, to_the_end=True)


def build(settings: Settings) -> "Application":
    """Return the application for ``serve.run``."""
    return replica.of(Classification, settings)
