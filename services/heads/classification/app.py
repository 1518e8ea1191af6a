"""Classification as a Serve application: which of these labels fits an image best."""

import asyncio
from collections.abc import Sequence

from ray.serve import Application
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.zero_shot import classify
from samclip_core.errors import SamClipError
from samclip_core.types import ImageFeatures
from services.deployment import replica
from services.heads.head import IMAGES_AT_ONCE, Head
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import check_images, check_labels, check_templates, check_top_k
from services.request.rpc import rpc
from services.settings import Settings


class Classification(Head):
    """Compares pooled CLIP embeddings with those of the labels."""

    name = "ClassificationService"
    application = "classification"

    @rpc
    async def Classify(
        self, request: pb.ClassifyRequest, context: RequestContext
    ) -> pb.ClassifyResponse:
        check_images(request.images, self.settings.max_images)
        check_labels(request.labels, self.settings.max_labels)
        check_templates(request.templates, request.labels, self.settings.max_labels)
        check_top_k(request.top_k)
        templates = tuple(request.templates) or self.config.templates
        embedded = await self._embed(context, request.images)  # first: the backbone may refuse it
        text_LD = await self.backbone.class_embeddings(context, request.labels, templates)
        results = []
        for info, features in embedded:
            assert features.clip_pooled_D is not None
            scores = classify(
                features.clip_pooled_D,
                text_LD,
                request.labels,
                self.config.logit_scale,
                request.top_k or None,
            )
            results.append(pb.ClassifyResult(image=info, scores=wire.to_scores(scores)))
        dtypes = {features.dtype for _, features in embedded}
        model = self.model_in(dtypes.pop() if len(dtypes) == 1 else "")
        return pb.ClassifyResponse(results=results, model=model)

    async def _embed(
        self, context: RequestContext, images: Sequence[pb.Image]
    ) -> list[tuple[pb.ImageInfo, ImageFeatures]]:
        """Embed the images together, so that they share batches; an error names its image."""
        gate = asyncio.Semaphore(IMAGES_AT_ONCE)

        async def embed(image: pb.Image) -> tuple[pb.ImageInfo, ImageFeatures]:
            async with gate:
                return await self.backbone.features(
                    context, image, pb.CLIP_POOLED, size=self.config.size_of("classify")
                )

        found = await asyncio.gather(*map(embed, images), return_exceptions=True)
        embedded = []
        for index, result in enumerate(found):
            if isinstance(result, SamClipError) and len(images) > 1:
                raise type(result)(f"image {index}: {result}") from result
            if isinstance(result, BaseException):
                raise result
            embedded.append(result)
        return embedded


def build(settings: Settings) -> Application:
    """Return the application for ``serve.run``."""
    return replica.of(Classification, settings)
