"""The models of a process by name: loaded when they are asked for, unloaded when they are idle.

A model is the service of its application with one checkpoint. Requests for a model that is not
loaded wait for one load; loads take turns, each in a thread. A name that gets new files keeps the
old ones for requests that ask for them, until DRAIN_S after the last of these.
"""

import asyncio
import ctypes
import logging
import math
import re
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import CheckpointError, NotFound, SamClipError, Unavailable
from samclip_core.io import checkpoint
from services.cache.embedding_cache import SingleFlight
from services.deployment.loaded_names import LoadedNames
from services.deployment.model import LoadedModel, Model
from services.observability import metrics
from services.request.context import Priority, RequestContext
from services.request.rpc import Service, model_of
from services.settings import Settings

DRAIN_S = 60.0
"""How long old files are kept after their last use: heads load the next ones in less."""
AGAIN_S = 0.5
"""Interval between two looks for idle models."""
ROOM_S = 0.05
"""Interval between two looks for room, which may be there only between two requests."""
LOAD_S = 600.0
"""Limit of a load, far above that of a large model that is measured: files on a server that is gone
may block for ever, and other loads wait for their turn."""
FAILED_S = 5.0
"""Pause after a load that failed, in which requests get its error."""
TOO_LARGE_S = 600.0
"""How long a model that was too large is refused without a load. Then it is measured again: what
other requests took during its load was measured too."""
MARGIN = 0.1
"""Share of a request's time that is left when it stops waiting for its model: its caller gets the
reason, and not only a deadline that has passed."""

FOLDERS = re.compile(r"(?<![^\s'\"`(])/\S*/")
"""The folders of an absolute path, which callers need not know."""
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
        self.named: dict[str, Model] = {}
        self.removed: list[Model] = []  # from the settings, until nobody needs them
        self.load_lock = (
            asyncio.Lock()
        )  # of loads: together they would be slower, and not measurable
        self._service, self._shared = service, service.shared(settings)
        self._loads = SingleFlight[None]()
        self._loaded_names = LoadedNames(service.application)
        self._keeper: asyncio.Task[None] | None = None

    @property
    def default(self) -> Model:
        return self.named[self.settings.default]

    def every(self) -> list[Model]:
        return [*self.named.values(), *self.removed]

    def serve(self, named: dict[str, Model], settings: Settings) -> None:
        """Serve these models, with these settings."""
        before, self.named, self.settings = self.named.values(), named, settings
        self.removed += [model for model in before if model not in named.values()]

    async def look(self) -> None:
        """Read what the files of models say that are not loaded."""
        await asyncio.gather(*(model.look() for model in self.named.values()))

    def find(self, name: str) -> Model:
        """Return the model of a name or an alias, "" for the default. Raises NotFound."""
        aliases = self.settings.aliases
        found = self.named.get(aliases.get(name, name)) if name else self.default
        if found is None:
            names = ", ".join([*self.named, *aliases])
            raise NotFound(f"no model {name[:80]!r} is served here, only {names}")
        return found

    async def model_for(self, request: Message, context: RequestContext) -> Model:
        """Return the model that a request names, else its collection's, else the default.

        Raises NotFound, and the errors of ``Service.wanted``.
        """
        if name := model_of(request):
            return self.find(name)
        if len(self.named) == 1:
            return self.default
        wanted = await self._service.wanted(request, context, **self._shared)
        return self.with_files(wanted) or self.default

    def with_files(self, identity: str) -> Model | None:
        """Return the model of a checkpoint, else one that works with it; it may not be loaded."""
        named = sorted(self.named.values(), key=lambda model: model.identity != identity)
        fits = (model for model in named if checkpoint.agree(model.identity, identity))
        return next(fits, None) if identity else None

    def fitting(self, identity: str) -> list[LoadedModel]:
        """Return what is loaded of a checkpoint or may work with it, exactly this one first."""
        held = [held for model in self.every() for held in model.held]
        fits = [one for one in held if checkpoint.agree(one.identity, identity)]
        return sorted(fits, key=lambda one: one.identity != identity)

    def listed(self) -> pb.ListModelsResponse:
        """Return all models in the order of the settings, and the aliases."""
        made = []
        for name in self.settings.named:
            made.append(self.find(name).served())
            made[-1].default = name == self.settings.default
            if name in self.settings.aliases:
                made[-1].name, made[-1].alias_of = name, made[-1].name
        return pb.ListModelsResponse(models=made)

    async def start(self) -> None:
        """Load the default model or all; begin with those of an ended replica. Raises any error."""
        noted, every = self._loaded_names.take(), self.settings.per_model()
        self.serve({name: Model(name, own) for name, own in every.items()}, self.settings)
        await self.look()
        async with self.load_lock:
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

    async def ensure_loaded(self, model: Model, priority: Priority) -> None:
        """Load a model unless it is. Raises Unavailable, also if there is no time left for it.

        The caller must begin to use it before it awaits anything, or it may be unloaded again.
        """
        if model.held:
            return
        self.refuse(model)
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

    def refuse(self, model: Model) -> None:
        """Raise Unavailable for a while after a load that failed, and while one blocks."""
        if model.reason and (model.blocked or time.monotonic() - model.failed < FAILED_S):
            raise Unavailable(model.reason)

    async def load(self, settings: Settings) -> LoadedModel:
        """Load a checkpoint in a thread, in ``load_lock``. Raises the service's errors."""
        before = metrics.used_bytes(settings.device)
        service = await asyncio.to_thread(self._service, settings, **self._shared)
        try:
            await service.start()
        except BaseException:
            await service.close()
            raise
        service.tune(settings)
        return LoadedModel(service, max(0, metrics.used_bytes(settings.device) - before))

    async def load_for(self, model: Model, settings: Settings) -> LoadedModel:
        """``load`` for a model that stays as long again: loads take at most half of the time."""
        begun = time.monotonic()
        held = await self.load_in_time(model, self.load(settings))
        held.stays_until = 2 * time.monotonic() - begun
        return held

    async def load_in_time(self, model: Model, work: Coroutine[Any, Any, T]) -> T:
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
            if isinstance(late := await task, LoadedModel):
                await self.close(late)

    async def close(self, held: LoadedModel) -> None:
        """Unload what no model has any more, and give its memory back to the system."""
        found = held.service.model
        loaded = {one.service.model.digest for model in self.every() for one in model.held}
        if found.digest not in loaded:
            metrics.retire(found)
        try:
            await held.service.close()
        except Exception:
            logger.exception("a model was not unloaded in order")
        vars(held.service).clear()
        await asyncio.to_thread(_give_back)

    def drop(self) -> None:
        """Let go of everything that is loaded, and of what the services share."""
        self.named.clear()
        self.removed.clear()
        self._shared.clear()

    async def _load(self, model: Model) -> None:
        while not model.held:
            async with self.load_lock:
                # A thread cannot be stopped, and the next caller finds what it has loaded.
                await finished(self._try(model))
            if not model.held:
                await asyncio.sleep(ROOM_S)

    async def _try(self, model: Model) -> None:
        """Load a model if it fits, and somebody still waits for it. Raises Unavailable."""
        if model.held:
            return
        with self.told(model):
            if not model.size:
                expected = asyncio.to_thread(self._service.expected_bytes, model.settings)
                model.size = await self.load_in_time(model, expected)
        if not await self._make_room(model) or not model.waiting:
            return
        with self.told(model):
            if time.monotonic() - model.measured < TOO_LARGE_S:
                self._check_size(model)
            await self._open(model)

    @contextmanager
    def told(self, model: Model) -> Iterator[None]:
        """Raise Unavailable for an error, which says to callers what is wrong with the files."""
        try:
            yield
        except Exception as error:
            logger.exception("model %s cannot be loaded", model.name)
            why = str(error) if isinstance(error, SamClipError) else "see the log of the service"
            why = FOLDERS.sub("", why.replace(model.settings.checkpoint, model.name))
            model.reason = f"model {model.name!r} cannot be loaded: {why}"
            model.failed = time.monotonic()
            metrics.MODEL_LOADS.labels(model.name, "failed").inc()
            raise Unavailable(model.reason) from error

    async def _open(self, model: Model) -> None:
        model.loading, bound = True, self.settings.max_models_bytes or math.inf
        try:
            held = await self.load_for(model, model.settings)
            if held.size > bound:  # also because the process imported libraries, which it does once
                await self.close(held)
                held = await self.load_for(model, model.settings)
        finally:
            model.loading = False
        model.size, model.measured = held.size, time.monotonic()
        if held.size > bound:
            await self.close(held)
            self._check_size(model)
        model.take(held)
        self._loaded_names.note(model.name, loaded=True)
        metrics.MODEL_LOADS.labels(model.name, "loaded").inc()

    def _check_size(self, model: Model) -> None:
        if model.size > (bound := self.settings.max_models_bytes) > 0:
            raise CheckpointError(
                f"it takes {model.size:,} bytes, and max_models_bytes is {bound:,}: set it higher"
            )

    async def _make_room(self, model: Model) -> bool:
        """Unload what has been unused longest until a model fits; return whether it does.

        A model that was never loaded is expected to take what its files do, at most the bound. If
        one of those was loaded just now, none leaves: another would be in more use.
        """
        if not (bound := self.settings.max_models_bytes):
            return True
        needed = min(bound, model.size)
        free = bound - sum(held.size for each in self.every() for held in each.held)
        unused = [each for each in self.named.values() if each.unused]
        unused.sort(key=lambda each: each.held[0].idle_s)
        leaving = list[tuple[Model, LoadedModel]]()
        while free < needed and unused:
            other = unused.pop()
            leaving.append((other, other.held[0]))
            free += other.held[0].size
        if free < needed or any(held.stays_until > time.monotonic() for _, held in leaving):
            return False
        await self._unload(leaving)
        return True

    async def _unload(self, leaving: Sequence[tuple[Model, LoadedModel]]) -> None:
        for model, held in leaving:  # all at once: no request takes one meanwhile
            model.held.remove(held)
            held.unloaded = True
            model.count()
            self._loaded_names.note(model.name, loaded=bool(model.held))
            metrics.MODEL_LOADS.labels(model.name, "unloaded").inc()
        for _, held in leaving:
            await self.close(held)

    async def _keep(self) -> None:
        """Unload older files and models that nobody needs."""
        while True:
            await asyncio.sleep(AGAIN_S)
            leaving, idle_s = list[tuple[Model, LoadedModel]](), self.settings.model_idle_s
            for model in self.every():
                first = 0 if model in self.removed else 1
                leaving += [(model, held) for held in model.held[first:] if held.idle_s > DRAIN_S]
                if first and idle_s and model.unused and model.held[0].idle_s > idle_s:
                    leaving.append((model, model.held[0]))
            await self._unload(leaving)
            needed = (m for m in self.removed if m.held or m.waiting or m.loading)
            self.removed = [*needed]


def _give_back() -> None:
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
