"""The base of all heads: the checkpoint's config and the client of the backbone."""

import json
from functools import cached_property
from typing import Any

from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from services.cache import embedding_cache
from services.heads.backbone_client import BackboneClient
from services.request import admission
from services.request.context import RequestContext
from services.request.rpc import Service
from services.settings import Settings

IMAGES_AT_ONCE = 16
"""Images of one request embedded at once: two batches, so that the encoder always has work, and far
below ``max_queue``, so that one large request does not shut out all others."""


class Head(Service):
    """Base of the services that work on embeddings. Needs neither weights nor torch."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.directory = checkpoint.resolve(settings.checkpoint)
        self.config = checkpoint.read_config(self.directory)
        self.model = pb.ModelInfo(
            name=self.config.name,
            digest=checkpoint.digest(self.directory),
            kind=self.config.kind,
        )
        lineage = json.loads(checkpoint.read_file(self.directory, checkpoint.LINEAGE))
        self.figures = lineage.get("metrics", {})

    async def health(self) -> dict[str, Any]:
        return {**await super().health(), "redis": await self.backbone.cache.state()}

    def model_in(self, dtype: str) -> pb.ModelInfo:
        """Return the model of an answer whose embeddings were computed in ``dtype``."""
        answered = pb.ModelInfo(dtype=dtype)
        answered.MergeFrom(self.model)
        return answered

    async def usable(self) -> bool:
        """Return whether the backbone has this checkpoint."""
        try:
            await self.backbone.embed_text(RequestContext(), ["a photo"])
        except SamClipError:
            return False
        return True

    async def close(self) -> None:
        await self.backbone.close()

    @cached_property
    def backbone(self) -> BackboneClient:
        address, metadata = admission.backbone(self.settings)
        # A remote backbone may preprocess images differently, so that its entries have no key that
        # we can know: they are cached in this process only.
        caches = embedding_cache.of_settings(
            self.settings,
            self.settings.head_cache_bytes,
            self.model.digest,
            self.config.image_size,
            share=not self.settings.backbone_address,
        )
        ca = self.settings.backbone_ca_file if self.settings.backbone_address else None
        return BackboneClient(
            address,
            metadata,
            self.config.image_size,
            self.model.digest,
            caches,
            self.settings.max_image_bytes,
            ca,
        )
