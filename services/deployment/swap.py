"""Change the checkpoint of a running service: the wrapper of every model service under Serve.

Serve's ``user_config`` names the checkpoint. If the name changes, the new checkpoint is loaded and
warmed beside the current one, and then answers first. The old one still answers requests that name
it, and is unloaded DRAIN_S after the last of them. If loading fails, nothing changes.

One checkpoint answers a request from the first step to the last. A head sends its digest and that
of its graphs to the backbone; other graphs of the same weights are another checkpoint. During a
swap, a replica of the backbone may not have loaded that checkpoint yet, or may have unloaded it:
the head then answers the whole request with its other checkpoint.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, ClassVar

from google.protobuf.message import Message
from samclip.rpcs import RPCS

from samclip_core.engine.base import runs_graphs
from samclip_core.errors import AnotherCheckpoint, Unavailable
from samclip_core.io import checkpoint
from services.observability import metrics
from services.request.context import RequestContext
from services.request.rpc import Answers, Service
from services.settings import Settings

DRAIN_S = 60.0
"""How long an old checkpoint is kept after its last use: heads load the next one in less."""
AGAIN_S = 0.5

logger = logging.getLogger(__name__)


class _Held:
    """A loaded service with its checkpoint, and the time of its last use."""

    def __init__(self, service: Service):
        self.service = service
        self._answering = 0
        self._needed = time.monotonic()

    @property
    def digest(self) -> str:
        return self.service.model.digest

    @property
    def identity(self) -> str:
        return self.digest + self.service.model.graphs

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
    """An ingress that runs ``service`` and can change its checkpoint. Made by ``swapping``."""

    service: ClassVar[type[Service]]

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._at_start = self._tuned = settings
        self._held: list[_Held] = []  # the current one, then older ones
        self._swap: asyncio.Task[None] | None = None
        self._state = "done"

    def __del__(self) -> None:
        """Release the services; Serve calls this after the replica's last request."""
        self._held.clear()

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve the ``checkpoint`` that ``config`` names, with its values of ``tunable`` settings.

        Other settings keep their values from the start. At start this raises any error. Later it
        returns at once, since Serve sends a replica no requests while this runs, and stops it if
        this raises: an error is then logged and changes nothing.
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
        self._tuned = settings
        self._put_first(_Held(first))

    async def health(self) -> dict[str, Any]:
        return {**await self._held[0].service.health(), "swap": self._state}

    async def check_health(self) -> None:
        for held in tuple(self._held):
            await held.service.check_health()

    def scope(self, method: str, request: Message) -> str:
        return self._held[0].service.scope(method, request)

    async def run(self, method: str, request: Message, context: RequestContext) -> Answers:
        """Run the method of the first checkpoint that can, or of the one that the caller names.

        A stream that has begun is never continued by another one.
        """
        error, begun = _not_loaded(context), False
        for held in self._candidates(context):
            with held.answering() as service:
                try:
                    async with aclosing(service.run(method, request, context)) as answers:
                        async for answer in answers:
                            begun = True
                            yield answer
                    return
                except AnotherCheckpoint as caught:
                    error = caught
            if begun:
                break
        raise error if context.checkpoint else Unavailable(str(error))

    def _candidates(self, context: RequestContext) -> Iterator[_Held]:
        wanted = context.checkpoint + context.graphs
        fits = [h for h in self._held if not wanted or checkpoint.agree(h.identity, wanted)]
        for held in sorted(fits, key=lambda held: held.identity != wanted):
            if held in self._held:  # not unloaded since
                yield held

    def _chosen(self, config: Mapping[str, Any]) -> Settings:
        return self._at_start.tuned(config, ("checkpoint", *self.service.tunable))

    async def _try(self, config: Mapping[str, Any]) -> None:
        try:
            await self._change(self._chosen(config))
        except Exception:
            self._tune(self._tuned)
            self._state = "failed: the previous checkpoint is still served; see the log"
            logger.exception("user_config %s of %s was not applied", config, self.application)
            return
        self._state = "done"
        await self._drain()

    async def _change(self, settings: Settings) -> None:
        self._tune(settings)
        directory = checkpoint.resolve(settings.checkpoint)
        # Exactly this one: ``agree`` would keep other graphs of the weights, or torch.
        of_files = checkpoint.identity if runs_graphs(settings.device) else checkpoint.digest
        identity = of_files(directory)
        held = next((each for each in self._held if each.identity == identity), None)
        if held is None:
            # A head reads few of the files: verify all, or it accepts what other services refuse.
            await asyncio.to_thread(checkpoint.verify, directory)
            successor = self._held[0].service.successor
            held = _Held(await asyncio.to_thread(successor, settings))
        while not await held.service.usable():
            await asyncio.sleep(AGAIN_S)
        self._put_first(held)
        self._tuned = settings

    def _tune(self, settings: Settings) -> None:
        for each in self._held:
            each.service.tune(settings)

    def _put_first(self, held: _Held) -> None:
        self._held = [held, *(each for each in self._held if each is not held)]
        metrics.announce(held.service.model, held.service.figures)

    async def _drain(self) -> None:
        """Unload the older checkpoints once they are idle."""
        while len(self._held) > 1:
            await asyncio.sleep(AGAIN_S)
            while held := next((each for each in self._held[1:] if each.idle), None):
                self._held.remove(held)
                if held.digest not in {each.digest for each in self._held}:
                    metrics.retire(held.service.model)
                await held.service.close()
        # Serve freezes all objects at start, so weights in cycles would never be freed.
        gc.unfreeze()
        gc.collect()


def _not_loaded(context: RequestContext) -> AnotherCheckpoint:
    return AnotherCheckpoint(
        f"checkpoint {checkpoint.shown(context.checkpoint + context.graphs)} is not loaded here: "
        "try another"
    )


def swapping(service: type[Service]) -> type[Swapping]:
    """Return the ingress class of a service. It has the same rpcs: Serve finds them by name."""
    called = (RPCS[name].name for name in service.rpcs)
    names = ("name", "application", "bulk", "tunable", *called)
    alike = {name: getattr(service, name) for name in names}
    return type(service.__name__, (Swapping,), {"service": service, **alike})
