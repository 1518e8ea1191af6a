"""The rpcs of the service's applications, called for a caller who speaks another protocol."""

import reprlib
from collections.abc import Sequence
from itertools import combinations, starmap
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import AnotherCheckpoint, NotFound
from samclip_core.io import checkpoint
from services.request import request_log, wire
from services.request.calls import Peer
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.routes import SERVICES
from services.request.transit import MAX_BODIES, Room
from services.settings import Settings

MAX_AT_ONCE = 256
"""Requests of all adapters that a gateway works on; its own pages have places of their own."""
_APPLICATIONS = {rpc: SERVICES[each.containing_service.full_name] for rpc, each in RPCS.items()}
"""The application that answers each rpc."""


class Applications:
    """Stubs of all applications, at Serve's inner port or where the backbone runs.

    All adapters share it, and its limits on requests at once and on bodies in transit.
    """

    def __init__(self, settings: Settings, most: int = MAX_AT_ONCE):
        self.settings = settings
        # Slow uploads must not take all places.
        self.arrivals = Room("request bodies", MAX_BODIES * settings.max_request_bytes, most // 2)
        self.places = Room("requests of other protocols", 0, most)
        self._names: tuple[str, ...] = ()  # of the model that answered last
        self._peers: dict[str, Peer] = {}

    async def call(self, rpc: str, request: Message, context: RequestContext) -> Any:
        """Return the reply to one request, whose bytes are held until the end of the caller's.

        Raises the application's errors, Unavailable, and Overloaded if there is no room for it.
        """
        application = _APPLICATIONS[rpc]
        if application not in self._peers:
            self._peers[application] = Peer.of(self.settings, application)
        counted = request_log.COUNTED, "1"
        reply = await self._peers[application].call(rpc, request, context, counted)
        context.reply.place.hold(reply.ByteSize())
        return reply

    async def embed(
        self, texts: Sequence[str], images: Sequence[pb.Image], context: RequestContext
    ) -> tuple[pb.ModelInfo, Sequence[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """Return one model, and its embeddings D of texts and images. Raises AnotherCheckpoint."""
        models: dict[str, pb.ModelInfo] = {}

        async def embed(image: pb.Image) -> NDArray[np.float32]:
            request = pb.EmbedRequest(image=image, outputs=[pb.CLIP_POOLED], inline=True)
            reply = await self.call("Embed", request, context)
            models[reply.model.digest + reply.model.graphs] = reply.model
            return wire.from_tensor(reply.tensors[0]).astype(np.float32)

        seen = await each(embed, images)
        read_TD: Sequence[NDArray[np.float32]] = ()
        if texts:
            reply = await self.call("EmbedText", pb.EmbedTextRequest(texts=texts), context)
            models[reply.model.digest + reply.model.graphs] = reply.model
            read_TD = list(wire.from_tensor(reply.tensor))
        if not all(starmap(checkpoint.agree, combinations(models, 2))):
            raise AnotherCheckpoint("the model was swapped during the request: send it again")
        return next(iter(models.values()), pb.ModelInfo()), read_TD, seen

    async def find_model(self, context: RequestContext) -> pb.ModelInfo:
        """Return the model that answers now."""
        return (await self.embed(["a photo"], [], context))[0]

    def check(self, name: object, model: pb.ModelInfo) -> None:
        """Raise NotFound unless ``name`` is the name or the id of the model that has answered."""
        self._names = model.name, wire.model_id(model)
        if name not in self._names:
            raise NotFound(f"the model is {self._names[1]!r}, not {reprlib.repr(name)}: send that")

    async def check_model(self, name: object, context: RequestContext) -> None:
        """Raise NotFound unless the model has or had this name: ``check`` that of the reply too."""
        if name not in self._names:
            self.check(name, await self.find_model(context))

    async def close(self) -> None:
        for peer in self._peers.values():
            await peer.close()
