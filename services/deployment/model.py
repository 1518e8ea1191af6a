"""One model of a process: its name and settings, and what is loaded of it."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from services.observability import metrics
from services.request.rpc import Service
from services.settings import Settings

LOOK_S = 5.0
"""Limit of reading what the small files of a checkpoint say."""


class LoadedModel:
    """A loaded service, the bytes that it took, and the time of its last use."""

    def __init__(self, service: Service, size: int = 0):
        self.service, self.size = service, size
        self.unloaded = False
        self.stays_until = 0.0  # before, it makes no room for others
        self._answering = 0
        self._used = time.monotonic()

    @property
    def identity(self) -> str:
        return self.service.model.digest + self.service.model.graphs

    @property
    def busy(self) -> bool:
        return self._answering > 0

    @property
    def idle_s(self) -> float:
        """Seconds since its last answer, 0 while it answers."""
        return 0.0 if self.busy else time.monotonic() - self._used

    @contextmanager
    def answering(self, used: bool = True) -> Iterator[Service]:
        """Keep it loaded. A check of its health does not count as ``used``."""
        self._answering += 1
        try:
            yield self.service
        finally:
            self._answering -= 1
            if used:
                self._used = time.monotonic()


class Model:
    """A name with its settings, and what is loaded: the current files first, then older ones."""

    def __init__(self, name: str, settings: Settings):
        self.held: list[LoadedModel] = []
        self.info = pb.ModelInfo()  # empty until its files could be read
        self.loading = False
        self.renewal: asyncio.Task[None] | None = None  # a load of files that were changed
        self.waiting = 0  # requests, for which it must not leave before they have begun
        self.name = name
        self.configure(name, settings)

    def configure(self, name: str, settings: Settings) -> None:
        """Take another name, or other files at the next load."""
        if self.held:
            metrics.MODEL_BYTES.labels(self.name).set(0)
        self.name, self.settings = name, settings
        self.size, self.measured = 0, -math.inf  # bytes, as expected or last measured, and when
        self.reason, self.failed = "", 0.0  # why the last load failed, and when
        metrics.MODEL_LOADS.labels(name, "failed")  # from 0 on, or no increase is seen
        self.late: asyncio.Task[None] | None = None  # what a load does that took too long
        self.count()

    async def look(self) -> None:
        """Read what its files say, unless it is loaded, or they are far away or do not answer."""
        settings = self.settings
        if self.held or settings.checkpoint.startswith("hf://"):
            return
        with suppress(SamClipError, OSError, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                found = await asyncio.to_thread(info, settings)
            if not self.held and self.settings is settings:
                self.info = found

    @property
    def identity(self) -> str:
        return self.info.digest + self.info.graphs

    @property
    def unused(self) -> bool:
        """Whether it is loaded, has no older files, and answers no request now."""
        return len(self.held) == 1 and not self.held[0].busy and not self.waiting

    @property
    def blocked(self) -> bool:
        """Whether a thread still tries to load it: another one would wait like that."""
        return self.late is not None and not self.late.done()

    def take(self, held: LoadedModel) -> None:
        """Answer with these files from now on."""
        self.held = [held, *(each for each in self.held if each is not held)]
        self.info, self.size, self.reason = held.service.model, held.size, ""
        metrics.announce(held.service.model, held.service.figures)
        self.count()

    def count(self) -> None:
        """Publish the memory of what is loaded."""
        metrics.MODEL_BYTES.labels(self.name).set(sum(held.size for held in self.held))

    def served(self) -> pb.ServedModel:
        state = "loaded" if self.held else "failed" if self.reason else "idle"
        return pb.ServedModel(
            name=self.name,
            digest=self.info.digest,
            kind=self.info.kind,
            state="loading" if self.loading else state,
            bytes=sum(held.size for held in self.held),
            idle_s=self.held[0].idle_s if self.held else 0,
            without_masks=self.info.without_masks,
            uncalibrated=self.info.uncalibrated,
            demonstration=self.info.demonstration,
            reason=self.reason,
        )


def info(settings: Settings) -> pb.ModelInfo:
    """Return what the files of a checkpoint say of it. Raises CheckpointError."""
    directory = checkpoint.resolve(settings.checkpoint)
    config, digest = checkpoint.read_sealed_config(directory)
    return pb.ModelInfo(
        name=config.name,
        digest=digest,
        kind=config.kind,
        uncalibrated=config.uncalibrated,
        without_masks=not config.masks,
        demonstration=checkpoint.demonstration(directory),
        image_size=config.image_size,
        graphs=checkpoint.graphs_digest(directory) if settings.device == "cpu" else "",
    )
