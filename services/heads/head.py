"""What every head has: the checkpoint's config, and the backbone to ask for embeddings."""

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
"""Of one request that are embedded at the same time: two batches, so that the encoder always has
work, and far below ``max_queue``, so that one large request does not shut out all others."""


class Head(Service):
    """Base of the services that work on embeddings. Reads no weights, imports no torch."""

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
        """The model of an answer whose embeddings were computed in ``dtype``."""
        answered = pb.ModelInfo(dtype=dtype)
        answered.MergeFrom(self.model)
        return answered

    async def usable(self) -> bool:
        """Whether the backbone has this checkpoint."""
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
        # A backbone elsewhere may prepare images another way than our code does, so its entries
        # have no name that we could know: what is kept of them stays in this process.
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
