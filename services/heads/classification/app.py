"""Classification as a Serve application: which of these labels fits an image best."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import Classify
from samclip_core.types import ImageFeatures
from services.deployment import replica
from services.heads.head import HeadService
from services.request import wire
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.limits import (
    MAX_TOP_K,
    check_areas,
    check_images,
    check_labels,
    check_range,
    check_scores,
    check_templates,
)
from services.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application


class Classification(HeadService):
    """Compares the CLIP embeddings of images, or of parts of one, with those of the labels."""

    name = "ClassificationService"
    application = "classification"

    async def Classify(
        self, request: pb.ClassifyRequest, context: RequestContext
    ) -> pb.ClassifyResponse:
        """Return the scores of the labels for each image, or for each area of one, best first.

        Needs CLIP_POOLED, or CLIP_DENSE for areas. Raises InvalidRequest, InvalidLabels, NotFound
        of a concept, and the errors of ``encode``; the first one names its image.
        """
        check_images(request.images, self.settings.max_images)
        check_areas(request.areas, len(request.images), self.settings.max_prompts)
        check_labels(request.labels, self.settings.max_labels)
        check_templates(request.templates, request.labels, self.settings.max_labels)
        check_range("top_k", request.top_k, MAX_TOP_K)
        check_scores(len(request.areas) or len(request.images), request.labels, request.top_k)
        templates = tuple(request.templates) or self.config.templates
        areas = () if request.areas else None
        asked = Classify([*request.labels], request.top_k, areas, templates)
        # New labels go with an image only if it is the only one: an error names its image.
        encoding = asked.encoding(self.config, asked.asked if len(request.images) == 1 else ())

        async def encode(image: pb.Image) -> tuple[pb.ImageInfo, ImageFeatures]:
            return await self.encode(context, image, encoding)

        embedded = await each(encode, request.images, to_the_end=True)
        text_LD = await self.backbone.class_embeddings(context, asked.labels, templates)

        def made() -> Iterator[pb.ClassifyResult]:
            for info, features in embedded:
                areas = wire.to_areas(request.areas, features.geometry) if request.areas else None
                answer = replace(asked, areas=areas)
                for scores in answer.scores(features, text_LD, self.config.logit_scale):
                    yield pb.ClassifyResult(image=info, scores=wire.to_scores(scores))

        results = await self.workers.drain(context.priority, "decode", made())
        dtypes = {features.dtype for _, features in embedded}
        model = self.model_in(dtypes.pop() if len(dtypes) == 1 else "")
        return pb.ClassifyResponse(results=results, model=model)


def build(settings: Settings) -> "Application":
    """Return the application for ``serve.run``."""
    return replica.deploy(Classification, settings)
