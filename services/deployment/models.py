"""The models of a process by name: loaded when they are asked for, unloaded when they are idle.

A model is the service of its application with one checkpoint. Requests for a model that is not
loaded wait for one load; loads take turns, each in a thread. A name that gets new files keeps the
old ones for requests that ask for them, until DRAIN_S after the last of these.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from samclip_core.errors import CheckpointError, NotFound, Unavailable
from samclip_core.io import checkpoint
from services.batching.priority import Priority
from services.cache.embedding_cache import SingleFlight
from services.deployment.loaded_names import LoadedNames
from services.deployment.model import ServedModel, fitting, give_back, info
from services.observability import metrics
from services.request.context import RequestContext
from services.request.rpc import Service, model_of
from services.settings import Settings

DRAIN_S = 60.0
"""How long old files are kept after their last use: heads load the next ones in less."""
AGAIN_S = 0.5
"""Interval between two looks for idle models."""
ROOM_S = 0.05
"""Interval between two looks for room, which may be there only between two requests."""
LOAD_S = 600.0
"""Limit of a load: files on a server that is gone may block for ever, and other loads wait."""
MARGIN = 0.1
"""Share of a request's time that is left when it stops waiting for its model, to tell why."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work that goes on to its end, also if the caller is cancelled."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


class Registry:
    """All models of one service in this process, for one event loop."""

    def __init__(self, service: type[Service], settings: Settings):
        self.settings = settings
        self.named: dict[str, ServedModel] = {}
        self.others: list[
            ServedModel
        ] = []  # older files, and newer ones that wait for all to be ready
        self._turn = asyncio.Lock()  # of loads: together they would be slower, and not measurable
        self._service, self._shared = service, service.shared(settings)
        self._loads = SingleFlight[ServedModel]()
        self._coming = dict[str, ServedModel]()  # by the files that are being loaded beside others
        self._loaded_names = LoadedNames(service.application)
        self._keeper: asyncio.Task[None] | None = None

    @property
    def default(self) -> ServedModel:
        return self.named[self.settings.default]

    def every(self) -> list[ServedModel]:
        return [*self.named.values(), *self.others]

    def loaded(self) -> list[ServedModel]:
        return [model for model in self.every() if model.service]

    def of_name(self, model: ServedModel) -> list[ServedModel]:
        """Return a model, and what else is loaded under its name."""
        alike = [other for other in self.loaded() if other.name == model.name]
        return list(dict.fromkeys([model, *alike]))

    def serve(self, named: dict[str, ServedModel], settings: Settings) -> None:
        """Serve these models, with these settings. What the others have loaded drains."""
        before, now = self.settings.default, settings.default
        if before not in named and now not in self.named:  # the default has another name
            for model in self.every():
                model.name = now if model.name == before else model.name
            self._publish(before)
        gone = [model for model in self.every() if model not in named.values()]
        self.named, self.others, self.settings = named, gone, settings
        every = settings.per_model()
        for name, model in named.items():
            model.configure(name, every[name])
            self._publish(name)

    async def look(self) -> None:
        """Read what the files of models say that are not loaded."""
        await asyncio.gather(*(model.look() for model in self.named.values()))

    def find(self, name: str) -> ServedModel:
        """Return the model of a name or an alias, "" for the default. Raises NotFound."""
        aliases = self.settings.aliases
        found = self.named.get(aliases.get(name, name)) if name else self.default
        if found is None:
            names = ", ".join([*self.named, *aliases])
            raise NotFound(f"no model {name[:80]!r} is served here, only {names}")
        return found

    async def model_for(self, request: Message, context: RequestContext) -> ServedModel:
        """Return the model that a request names, else its collection's, else the default.

        Raises NotFound, and the errors of ``Service.wanted``.
        """
        if name := model_of(request):
            return self.find(name)
        if len(self.named) == 1:
            return self.default
        wanted = await self._service.wanted(request, context, **self._shared)
        return self.with_files(wanted) or self.default

    def with_files(self, identity: str) -> ServedModel | None:
        """Return the model of a checkpoint, else one that works with it; it may not be loaded."""
        return next(iter(fitting(self.named.values(), identity)), None) if identity else None

    def fitting(self, identity: str) -> list[ServedModel]:
        """Return what is loaded of a checkpoint or may work with it, exactly this one first."""
        return fitting(self.loaded(), identity)

    async def start(self) -> None:
        """Load the default model or all; begin with those of an ended replica. Raises any error."""
        noted, every = self._loaded_names.take(), self.settings.per_model()
        self.serve({name: ServedModel(name, own) for name, own in every.items()}, self.settings)
        await self.look()
        async with self._turn:
            await self._open(self.default)
        if self.settings.models_at_start == "all":
            await self._ready(self.named, Priority())
        self._keeper = asyncio.create_task(self._keep())
        until = time.monotonic() + self.settings.request_timeout_s
        self._again = asyncio.create_task(self._ready(noted, Priority(until)))

    async def _ready(self, names: Iterable[str], priority: Priority) -> None:
        for model in [self.named[name] for name in names if name in self.named]:
            with suppress(Unavailable):  # logged
                await self.ensure_loaded(model, priority)

    async def ensure_loaded(self, model: ServedModel, priority: Priority) -> None:
        """Load a model unless it is. Raises Unavailable, also if there is no time left for it.

        The caller must begin to use it before it awaits anything, or it may be unloaded again.
        """
        if model.service:
            return
        model.refuse()
        left_s = priority.time_left()
        model.waiting += 1
        try:
            async with asyncio.timeout(left_s and (1 - MARGIN) * left_s):
                await self._loads.run(str(id(model)), partial(self._load, model))
        except TimeoutError as error:
            why = "is being loaded" if model.loading else "waits for memory that others use"
            raise Unavailable(f"model {model.name!r} {why}: try again later") from error
        finally:
            model.waiting -= 1

    @asynccontextmanager
    async def beside(self, model: ServedModel, new: ServedModel) -> AsyncIterator[ServedModel]:
        """Yield a loaded model with the files of ``new``, which else is loaded beside ``model``.

        It stays loaded until the end of the block. Raises any error.
        """
        new.info = await asyncio.to_thread(info, new.settings)
        # Exactly these files: ``agree`` would keep other graphs of the weights, or torch.
        alike = (other for other in self.of_name(model) if other.identity == new.identity)
        found = next(alike, None) or self._coming.setdefault(f"{new.name}={new.identity}", new)
        found.waiting += 1
        try:
            if not found.service:
                await self._loads.run(str(id(found)), partial(self._load_new, found))
            yield found
        finally:
            found.waiting -= 1

    async def _load_new(self, new: ServedModel) -> ServedModel:
        key = f"{new.name}={new.identity}"

        async def load() -> None:
            self.others.append(new)
            await self._open(new)

        try:
            # A head reads few of the files: verify all, or it accepts what other services refuse.
            directory = checkpoint.resolve(new.settings.checkpoint)
            await asyncio.to_thread(checkpoint.verify, directory)
            async with self._turn:
                await finished(load())
        finally:
            self._coming.pop(key, None)
        return new

    async def load(self, settings: Settings) -> tuple[Service, int]:
        """Load a checkpoint in a thread, at its ``_turn``: its service, and the bytes it takes."""
        before = metrics.used_bytes(settings.device)
        service = await asyncio.to_thread(self._service, settings, **self._shared)
        try:
            await service.start()
        except BaseException:
            await service.close()
            raise
        return service, max(0, metrics.used_bytes(settings.device) - before)

    async def _in_time(self, model: ServedModel, work: Coroutine[Any, Any, T]) -> T:
        """Return what a thread makes of a model's files. Raises CheckpointError after LOAD_S.

        The thread cannot be stopped: what it loads later is closed.
        """
        task = asyncio.create_task(work)
        done, _ = await asyncio.wait([task], timeout=LOAD_S)
        if not done:
            model.late = asyncio.create_task(self._close_late(task))
            raise CheckpointError(
                f"its files or its runtime did not answer in {LOAD_S:.0f} s: see whether the disk "
                "does; when they answer, the next request loads it"
            )
        return task.result()

    async def _close_late(self, task: asyncio.Task[Any]) -> None:
        with suppress(Exception):  # callers have an error already
            if isinstance(late := await task, tuple):
                await self.close(late[0])

    async def close(self, service: Service) -> None:
        """Unload what no model has any more, and give its memory back to the system."""
        found = service.model
        if found.digest not in {model.info.digest for model in self.loaded()}:
            metrics.retire(found)
        try:
            await service.close()
        except Exception:
            logger.exception("a model was not unloaded in order")
        vars(service).clear()
        await asyncio.to_thread(give_back)

    def drop(self) -> None:
        """Let go of everything that is loaded, and of what the services share."""
        self.named, self.others = {}, []
        self._shared.clear()

    async def _load(self, model: ServedModel) -> ServedModel:
        while not model.service:
            async with self._turn:
                # A thread cannot be stopped, and the next caller finds what it has loaded.
                await finished(self._try(model))
            if not model.service:
                await asyncio.sleep(ROOM_S)
        return model

    async def _try(self, model: ServedModel) -> None:
        """Load a model if it fits, and somebody still waits for it. Raises Unavailable."""
        if model.service:
            return
        with model.told():
            await self._expect(model)
            if await self._make_room(model) and model.waiting:
                await self._open(model)

    async def _expect(self, model: ServedModel) -> None:
        if not model.size:
            expected = asyncio.to_thread(self._service.expected_bytes, model.settings)
            model.size = await self._in_time(model, expected)

    async def _open(self, model: ServedModel) -> None:
        """Load a model, at its ``_turn``. Raises CheckpointError if it is too large, or any error.

        It stays as long again: loads take at most half of the time. Its size is what it takes if
        none else is loaded: what others take meanwhile would be measured too.
        """
        await self._expect(model)
        model.loading, bound = True, model.settings.max_models_bytes or math.inf
        try:
            for _ in range(2):  # the first one also imports libraries, which a process does once
                begun, alone = time.monotonic(), not self.loaded()
                service, taken = await self._in_time(model, self.load(model.settings))
                if alone or not model.size:
                    model.size = taken
                if min(taken, model.size) <= bound:
                    break
                await self.close(service)
            else:
                raise CheckpointError(
                    f"it takes {model.size:,} bytes, and max_models_bytes is {bound:,}: set it "
                    "higher"
                )
        finally:
            model.loading = False
        model.take(service)
        model.stays_until = 2 * time.monotonic() - begun
        self._publish(model.name)
        self._loaded_names.note(model.name, loaded=True)
        metrics.MODEL_LOADS.labels(model.name, "loaded").inc()

    async def _make_room(self, model: ServedModel) -> bool:
        """Unload what has been unused longest until a model fits; return whether it does.

        One that should take more than the bound is loaded alone, and thus measured. If one of those
        was loaded just now, none leaves: another would be in more use.
        """
        if not (bound := self.settings.max_models_bytes):
            return True
        needed = min(bound, model.size)
        free = bound - sum(other.size for other in self.loaded())
        unused = [other for other in self.named.values() if other.unused]
        unused.sort(key=lambda other: other.idle_s)
        leaving = list[ServedModel]()
        while free < needed and unused:
            leaving.append(unused.pop())
            free += leaving[-1].size
        if free < needed or any(other.stays_until > time.monotonic() for other in leaving):
            return False
        await self._unload(leaving)
        return True

    async def _unload(self, leaving: Sequence[ServedModel]) -> None:
        services = [model.service for model in leaving if model.service]
        for model in leaving:  # before any await, so that no request begins to use one
            model.service = None
            self._publish(model.name)
            self._loaded_names.note(model.name, model.name in {m.name for m in self.loaded()})
            metrics.MODEL_LOADS.labels(model.name, "unloaded").inc()
        for service in services:
            await self.close(service)

    def _publish(self, name: str) -> None:
        """Publish the memory of what is loaded under a name."""
        sizes = (model.size for model in self.loaded() if model.name == name)
        metrics.MODEL_BYTES.labels(name).set(sum(sizes))

    async def _keep(self) -> None:
        """Unload older files and models that nobody needs."""
        while True:
            await asyncio.sleep(AGAIN_S)
            idle_s = self.settings.model_idle_s or math.inf
            leaving = [m for m in self.others if m.unused and (m.unwanted or m.idle_s > DRAIN_S)]
            leaving += [m for m in self.named.values() if m.unused and m.idle_s > idle_s]
            await self._unload(leaving)
            self.others = [m for m in self.others if m.service or m.waiting or m.loading]
