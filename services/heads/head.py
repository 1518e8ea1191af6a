"""The base of all heads: the checkpoint's config and the client of the backbone."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import beside, concepts
from samclip_core.answers.areas import embed_areas
from samclip_core.answers.sam_head import SamHead
from samclip_core.answers.steps import Encode
from samclip_core.answers.zero_shot import class_texts
from samclip_core.errors import InvalidRequest, SamClipError
from samclip_core.geometry import Crop
from samclip_core.io import checkpoint
from samclip_core.types import ImageFeatures
from services.batching.threads import Places, Threads
from services.cache import embedding_cache
from services.cache.memory import MemoryTier
from services.deployment import replica
from services.deployment.model import info
from services.heads.backbone_client import BackboneClient
from services.request import wire
from services.request.calls import Peer
from services.request.context import CHECKPOINT, GRAPHS, RequestContext
from services.request.rpc import Service
from services.settings import Settings

PICTURES = 2
"""Pictures whose pixels a process holds at once, some 200 MB each, until their tiles are cut."""
TILED = 4
"""Requests that hold tiles as files at once, up to 50 MB each by default."""
TILE_KEYS = 16_384
"""Tiles whose keys are remembered: so many need no pixels for a second question."""
TileName = tuple[str, Crop, int]
"""A tile: the picture's cache key, the rectangle, and the side of the frame in pixels."""


class HeadService(Service):
    """Base of the services that work on embeddings. Needs neither weights nor torch.

    ``peer`` answers for the backbone, by default the one that the settings name. ``sam_head`` is
    loaded when a head first uses it, unless it is given.
    """

    def __init__(
        self,
        settings: Settings,
        peer: Peer | None = None,
        sam_head: SamHead | None = None,
        memory: MemoryTier | None = None,
    ):
        super().__init__(settings)
        self._peer = peer
        if sam_head is not None:
            self.sam_head = sam_head
        self._others = dict[str, Peer]()
        self._memory = memory or MemoryTier(settings.head_cache_bytes)
        self.workers = Threads("work")
        self.pictures, self.tiled = Places("pictures", PICTURES), Places("tiled", TILED)
        self.tile_keys = LRUCache[TileName, str](TILE_KEYS)
        self.directory = checkpoint.resolve(settings.checkpoint)
        self.config = checkpoint.read_config(self.directory)
        self._beside = beside.read(self.directory, self.config)
        self.model = info(settings)
        lineage = checkpoint.read_lineage(self.directory)
        self.figures = lineage.get("metrics", {})

    @classmethod
    def shared(cls, settings: Settings) -> dict[str, Any]:
        return {"memory": MemoryTier(settings.head_cache_bytes)}

    async def health(self) -> dict[str, Any]:
        return {**await super().health(), "redis": await self.backbone.cache.state()}

    def model_in(self, dtype: str) -> pb.ModelInfo:
        """Return the model of an answer whose embeddings were computed in ``dtype``."""
        answered = pb.ModelInfo(dtype=dtype)
        answered.MergeFrom(self.model)
        answered.graphs = self.backbone.graphs
        return answered

    async def usable(self) -> bool:
        """Return whether the backbone has this checkpoint."""
        try:
            await self.backbone.embed_text(RequestContext(), ["a photo"])
        except SamClipError:
            return False
        return True

    async def close(self) -> None:
        await super().close()
        await self.backbone.close()
        for other in self._others.values():
            await other.close()
        self.workers.close()

    async def encode(
        self, context: RequestContext, image: pb.Image, *asked: Encode
    ) -> tuple[pb.ImageInfo, ImageFeatures]:
        """Return the image's info, and the outputs of the encoder that are asked for.

        All ask for the same size. Their texts are embedded in the same call to the backbone.
        """
        outputs = {getattr(pb, name) for one in asked for name in one.outputs}

        def texts() -> list[str]:
            made = list[str]()
            for some in chain.from_iterable(one.texts for one in asked):
                default = self.config.templates
                words = concepts.texts_in(some.labels)
                templates = default if some.templates is None else some.templates
                made += class_texts(words, templates) if words else ()
            return made

        return await self.backbone.features(
            context, image, *sorted(outputs), size=asked[0].side, texts=texts
        )

    async def embed_areas(
        self, context: RequestContext, image: pb.Image, areas: Sequence[pb.Area]
    ) -> tuple[pb.ImageInfo, str, list[NDArray[np.float32]]]:
        """Return the image's info, the precision, and the embedding D of each area, of length 1.

        ``areas`` have passed ``check_areas``. Raises InvalidRequest, with the number of the area.
        """
        size = self.config.size_of("semantic")
        info, features = await self.backbone.features(context, image, pb.CLIP_DENSE, size=size)
        made = embed_areas(features, wire.to_areas(areas, features.geometry))
        return info, features.dtype, await self.workers.drain(context.priority, "decode", made)

    async def ask(self, application: str, rpc: str, request: Any, context: RequestContext) -> Any:
        """Return the reply of another application here, of the same checkpoint.

        Raises its errors, and InvalidRequest if no other application runs beside this one.
        """
        if self._peer is not None:
            raise InvalidRequest("concepts are kept by a service: send the request to one")
        if application not in self._others:
            self._others[application] = Peer.of(self.settings, application)
        request.model = self.settings.default
        same = (CHECKPOINT, self.model.digest), (GRAPHS, self.model.graphs)
        return await self._others[application].call(rpc, request, context, *same)

    async def find_concepts(
        self, context: RequestContext, names: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the vectors D of concepts of the caller's tenant, by name. Raises NotFound."""
        request = pb.ListConceptsRequest(names=names, inline=True)
        reply = await self.ask("retrieval", "ListConcepts", request, context)
        rows = zip(reply.concepts, wire.from_tensor(reply.clip), strict=True)
        return {concept.name: vector_D for concept, vector_D in rows}

    @cached_property
    def sam_head(self) -> SamHead:
        return replica.sam_head(self.settings)

    @cached_property
    def backbone(self) -> BackboneClient:
        # A remote backbone may preprocess images differently, so that its entries have no key that
        # we can know: they are cached in this process only.
        caches = embedding_cache.of_settings(
            self.settings,
            self._memory,
            self.model.digest,
            self.config.image_size,
            share=not self.settings.backbone_address,
        )
        client = BackboneClient(
            self._peer or Peer.of(self.settings, "backbone"),
            self.config.image_size,
            self.model.digest + self.model.graphs,
            caches,
            self.settings.max_image_bytes,
            self.find_concepts,
            self.settings.default,
        )
        client.know(self._beside)
        return client
