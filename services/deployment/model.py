"""One model of a process."""

import asyncio
import ctypes
import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import SamClipError, Unavailable
from samclip_core.io import checkpoint
from services.observability import metrics
from services.request.rpc import Service
from services.settings import Settings

LOOK_S = 5.0
"""Limit of reading what the small files of a checkpoint say."""


FAILED_S = 5.0
"""Pause after a load that failed, in which requests get its error."""
FOLDERS = re.compile(r"(?<![^\s'\"`(])/\S*/")
"""The folders of an absolute path, which callers need not know."""

logger = logging.getLogger(__name__)


class ServedModel:
    """A checkpoint under a name: its settings, its service while it is loaded, and its last use."""

    def __init__(self, name: str, settings: Settings):
        self.name, self.settings = name, settings
        self.info = pb.ModelInfo()  # empty until its files could be read
        self.service: Service | None = None
        self.size = 0  # bytes, as expected from its files, or measured when it was loaded alone
        self.stays_until = 0.0  # before, it makes no room for others
        self.loading = False
        self.renewal: asyncio.Task[None] | None = None  # a load of files that were changed
        self.unwanted = False  # loaded for a change that has failed
        self.waiting = 0  # requests, for which it must not leave before they have begun
        self.reason, self.failed = "", 0.0  # the error of the last failed load, and its time
        self.late: asyncio.Task[None] | None = None  # what a load does that took too long
        self._answering = 0
        self._used = 0.0
        metrics.MODEL_LOADS.labels(name, "failed")  # from 0 on, or no increase is seen

    @property
    def idle_s(self) -> float:
        """Seconds since its last answer or its load, 0 while it answers or is not loaded."""
        return time.monotonic() - self._used if self.service and not self._answering else 0.0

    @property
    def unused(self) -> bool:
        """Whether it is loaded, and answers no request now."""
        return self.service is not None and not self._answering and not self.waiting

    @property
    def blocked(self) -> bool:
        """Whether a thread still tries to load it: another one would wait like that."""
        return self.late is not None and not self.late.done()

    @property
    def identity(self) -> str:
        return self.info.digest + self.info.graphs

    @contextmanager
    def answering(self, used: bool = True) -> Iterator[Service]:
        """Keep it loaded. A check of its health does not count as ``used``."""
        assert self.service is not None
        self._answering += 1
        try:
            yield self.service
        finally:
            self._answering -= 1
            if used:
                self._used = time.monotonic()

    def refuse(self) -> None:
        """Raise Unavailable for a while after a load that failed, and while one blocks."""
        if self.reason and (self.blocked or time.monotonic() - self.failed < FAILED_S):
            raise Unavailable(self.reason)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Replace any error by Unavailable, which tells callers what is wrong with the files."""
        try:
            yield
        except Exception as error:
            logger.exception("model %s cannot be loaded", self.name)
            why = str(error) if isinstance(error, SamClipError) else "see the log of the service"
            why = FOLDERS.sub("", why.replace(self.settings.checkpoint, self.name))
            self.reason = f"model {self.name!r} cannot be loaded: {why}"
            self.failed = time.monotonic()
            metrics.MODEL_LOADS.labels(self.name, "failed").inc()
            raise Unavailable(self.reason) from error

    def configure(self, name: str, settings: Settings) -> None:
        """Answer as one of the names that are served, with these settings."""
        self.name, self.settings, self.unwanted = name, settings, False
        if self.service:
            self.service.tune(settings)

    def take(self, service: Service) -> None:
        """Answer with this service from now on."""
        service.tune(self.settings)  # which may have changed during the load
        self.service, self.info, self.reason = service, service.model, ""
        self._used = time.monotonic()
        metrics.announce(service.model, service.figures)

    async def look(self) -> None:
        """Read what its files say, unless it is loaded, or they are far away or do not answer."""
        settings = self.settings
        if self.service or settings.checkpoint.startswith("hf://"):
            return
        with suppress(SamClipError, OSError, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                found = await asyncio.to_thread(info, settings)
            if not self.service and self.settings is settings:
                self.info = found

    def served(self) -> pb.ServedModel:
        state = "loaded" if self.service else "failed" if self.reason else "idle"
        return pb.ServedModel(
            name=self.name,
            digest=self.info.digest,
            kind=self.info.kind,
            state="loading" if self.loading else state,
            bytes=self.size if self.service else 0,
            idle_s=self.idle_s,
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
        squash=config.squash,
        sure=config.sure,
        graphs=checkpoint.graphs_digest(directory) if settings.device == "cpu" else "",
    )


def fitting(models: Iterable[ServedModel], identity: str) -> list[ServedModel]:
    """Return the models of a checkpoint or what may work with it, exactly this one first."""
    fits = [model for model in models if checkpoint.agree(model.identity, identity)]
    return sorted(fits, key=lambda model: model.identity != identity)


def give_back() -> None:
    """Give memory that is free back to the system."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
