"""Another checkpoint while a service runs: what every model service is under Serve.

Serve's ``user_config`` names the checkpoint. When it names another one, that is loaded beside the
one that is served, warmed, and then answers first; the one before answers whoever still asks for
it, and goes when nobody has for DRAIN_S. A checkpoint that cannot be loaded changes nothing.

One checkpoint answers a request from its first step to its last. A head tells the backbone which
one it means. During a swap some replica of the backbone may not have that one yet, or any more: the
head then answers the whole request by the other one that it holds.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from google.protobuf.message import Message

from samclip_core.errors import AnotherCheckpoint, Unavailable
from samclip_core.io import checkpoint
from services.observability import metrics
from services.request.context import RequestContext
from services.request.rpc import Service
from services.settings import Settings

DRAIN_S = 60.0
"""How long a checkpoint is kept after it was last needed: more than heads take to load the next."""
AGAIN_S = 0.5

logger = logging.getLogger(__name__)


class _Held:
    """A service with its checkpoint, and whether somebody needs it."""

    def __init__(self, service: Service):
        self.service = service
        self._answering = 0
        self._needed = time.monotonic()

    @property
    def digest(self) -> str:
        return self.service.model.digest

    @property
    def idle(self) -> bool:
        return not self._answering and time.monotonic() - self._needed > DRAIN_S

    @contextmanager
    def answering(self) -> Iterator[Service]:
        self._answering += 1
        try:
            yield self.service
        finally:
            self._answering -= 1
            self._needed = time.monotonic()


class Swapping(Service):
    """The ingress of an application, of the class ``service``. Made by ``swapping``."""

    service: ClassVar[type[Service]]

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._at_start = settings
        self._held: list[_Held] = []  # the one that answers first, and those before it
        self._swap: asyncio.Task[None] | None = None
        self._state = "done"

    def __del__(self) -> None:
        """Serve calls this when the replica has answered its last request."""
        self._held.clear()

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve the ``checkpoint`` that ``config`` names, with its values of ``tunable`` settings.

        What it does not name is as in the settings. At start this raises whatever is wrong with
        it. Later it returns at once, as Serve sends a replica no requests while this runs, and
        ends it where this raises: what is wrong is then logged, and changes nothing.
        """
        if self._swap is not None:
            self._swap.cancel()
        if self._held:
            self._state = "under way"
            self._swap = asyncio.create_task(self._try(config))
            return
        settings = self._chosen(config)
        first = await asyncio.to_thread(self.service, settings)
        first.tune(settings)
        self._put_first(_Held(first))

    async def health(self) -> dict[str, Any]:
        return {**await self._held[0].service.health(), "swap": self._state}

    async def check_health(self) -> None:
        for held in tuple(self._held):
            await held.service.check_health()

    def scope(self, method: str, request: Message) -> str:
        return self._held[0].service.scope(method, request)

    async def answer(self, method: str, request: Message, context: RequestContext) -> Message:
        """By the first checkpoint that can; by no other than the one that the caller names."""
        asked = context.checkpoint
        error = AnotherCheckpoint(f"checkpoint {asked[:12]} is not held here: try another")
        for held in tuple(self._held):
            if asked not in ("", held.digest) or held not in self._held:  # let go of meanwhile
                continue
            with held.answering() as service:
                try:
                    return await service.answer(method, request, context)
                except AnotherCheckpoint as caught:
                    error = caught
        raise error if asked else Unavailable(str(error))

    def _chosen(self, config: Mapping[str, Any]) -> Settings:
        return self._at_start.tuned(config, ("checkpoint", *self.service.tunable))

    async def _try(self, config: Mapping[str, Any]) -> None:
        try:
            await self._change(self._chosen(config))
        except Exception:
            self._state = "failed: what was served before still is; the log says why"
            logger.exception("user_config %s of %s was not taken", config, self.application)
            return
        self._state = "done"
        await self._drain()

    async def _change(self, settings: Settings) -> None:
        for each in self._held:
            each.service.tune(settings)
        directory = checkpoint.resolve(settings.checkpoint)
        digest = checkpoint.digest(directory)
        held = next((each for each in self._held if each.digest == digest), None)
        if held is None:
            # A head reads few of its files: none begins with what another one must refuse.
            await asyncio.to_thread(checkpoint.verify, directory)
            successor = self._held[0].service.successor
            held = _Held(await asyncio.to_thread(successor, settings))
        while not await held.service.usable():
            await asyncio.sleep(AGAIN_S)
        self._put_first(held)

    def _put_first(self, held: _Held) -> None:
        self._held = [held, *(each for each in self._held if each is not held)]
        metrics.announce(held.service.model, held.service.figures)

    async def _drain(self) -> None:
        """Let go of those before, when nobody needs them any more."""
        while len(self._held) > 1:
            await asyncio.sleep(AGAIN_S)
            while held := next((each for each in self._held[1:] if each.idle), None):
                self._held.remove(held)
                metrics.retire(held.service.model)
                await held.service.close()
        # Serve has frozen what it found at start: weights, held by cycles, would stay for ever.
        gc.unfreeze()
        gc.collect()


def swapping(service: type[Service]) -> type[Swapping]:
    """The ingress class of a service. Serve finds rpcs by their names, so it has the same ones."""
    rpcs = {name: method for name, method in vars(service).items() if hasattr(method, "answer")}
    named = {name: getattr(service, name) for name in ("name", "application", "bulk", "tunable")}
    return type(service.__name__, (Swapping,), {"service": service, **named, **rpcs})
