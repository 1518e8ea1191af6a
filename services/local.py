"""The services in one process, without gRPC, Ray and Redis: ``samclip --local`` asks them."""

import math
from collections.abc import Iterator
from importlib import import_module
from time import monotonic
from typing import Any

from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.own import name_of
from samclip_core.errors import NotFound
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from services.backbone.app import Backbone
from services.batching.priority import Priority
from services.heads.head import HeadService
from services.heads.own.app import of
from services.request.calls import Header, Peer
from services.request.context import RequestContext
from services.request.routes import APPLICATIONS, of_application
from services.request.rpc import Service, model_of
from services.settings import Settings


class Direct(Peer):
    """A service in this process, which is called without gRPC."""

    def __init__(self, service: Service):
        super().__init__(service.application, "", ())
        self.name = f"the {service.application} in this process"
        self._service = service

    async def call(self, rpc: str, request: Message, context: RequestContext, *more: Header) -> Any:
        """Return the reply to one request. Raises the service's errors."""
        return await self._service.answer(rpc, request, context)

    async def close(self) -> None:
        """Do nothing: there is no connection."""


class Local:
    """Answers every rpc of the backbone and the heads that has one answer. For one event loop."""

    def __init__(self, name_or_dir: str, head: str = "") -> None:
        """Load a bundled checkpoint by name, or one from its directory. Raises CheckpointError.

        head: specification of a head of one's own, which answers Ask. Raises HeadError, and any
        error of its code.
        """
        own = [of(name_of(head), head)] if head else []
        directory = checkpoint.resolve(name_or_dir)
        model = SamClip.load(directory)
        # The defaults: the environment's settings are those of a service. The backbone caches.
        settings = Settings.model_construct(checkpoint=str(directory), head_cache_bytes=0)
        self._name = settings.default
        backbone = Backbone(settings, model)
        given: Any = {"peer": Direct(backbone), "sam_head": model.sam_head}
        self.model = backbone.model
        self._open = [*(each(settings, **given) for each in (*_heads(), *own)), backbone]
        self.services = {
            rpc.name: service
            for service in self._open
            for name in of_application(service.application).services
            for rpc in pb.DESCRIPTOR.services_by_name[name].methods
            if not rpc.server_streaming
        }

    async def answer(self, request: Message, most_s: float = math.inf) -> Any:
        """Return the answer to a request in at most ``most_s``. Raises the service's errors."""
        if model_of(request) not in ("", self._name):
            raise NotFound(f"this process has one model, {self._name!r}: name that, or none")
        rpc = type(request).__name__.removesuffix("Request")
        context = RequestContext(priority=Priority(monotonic() + most_s))
        return await self.services[rpc].answer(rpc, request, context)

    async def close(self) -> None:
        """Stop the threads and let go of the model and its embeddings; no request may wait."""
        self.services.clear()
        while self._open:
            await self._open.pop(0).close()


def _heads() -> Iterator[type[HeadService]]:
    """Yield the class of each head in the route table, which its module defines."""
    for application in APPLICATIONS.values():
        if application.module.startswith("services.heads."):
            for value in vars(import_module(application.module)).values():
                if (
                    isinstance(value, type)
                    and issubclass(value, HeadService)
                    and value is not HeadService
                ):
                    yield value
