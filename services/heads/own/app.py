"""A head of one's own as a Serve application, which harms no other by what it imports or does."""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from inspect import cleandoc
from time import monotonic, sleep
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import head as heads
from samclip_core.answers.head import Ask
from samclip_core.answers.own import open_head
from samclip_core.answers.probe import Probe
from samclip_core.answers.steps import Done, Question, Steps, Terms, advance, answer
from samclip_core.errors import CheckpointError, NotFound, Unavailable
from samclip_core.io import checkpoint
from samclip_core.types import ImageFeatures, MaskHead, MaskSet, Prompt
from services.batching import threads
from services.batching.batcher import prompts_per_step
from services.cache.memory import MemoryTier
from services.deployment import replica
from services.heads.head import Head
from services.heads.own import result
from services.heads.own.parameters import Parameters
from services.request.calls import Peer
from services.request.context import Priority, RequestContext
from services.request.limits import check_encoding
from services.request.routes import HEAD
from services.request.rpc import rpc
from services.settings import Settings, SettingsError

if TYPE_CHECKING:
    from ray.serve import Application

T = TypeVar("T")
HANGS_S = 5.0
"""How long a step may go on after its request's deadline; then the replica is replaced."""
TURNS = 2
"""Requests whose steps alternate; each keeps its answer in memory until it is encoded."""
START_S = 60.0
"""How long a head that loads waits for the backbone, which may start after it."""
AGAIN_S = 0.5


class OwnModel:
    """The checkpoint as a head's code sees it: ``samclip_core.answers.head.HeadModel``."""

    def __init__(self, service: "OwnHead", loop: asyncio.AbstractEventLoop):
        self.config, self.digest = service.config, service.model.digest
        self._service, self._loop = service, loop

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Ask the backbone, for which ``load`` waits up to START_S. Raises Unavailable."""
        end = monotonic() + START_S
        while True:
            context = RequestContext(priority=Priority(end))
            asked = self._service.backbone.embed_text(context, [*texts])
            try:
                return asyncio.run_coroutine_threadsafe(asked, self._loop).result()
            except Unavailable:
                if self._service.loaded or monotonic() > end:
                    raise
                sleep(AGAIN_S)

    def segment(
        self, image: ImageFeatures, prompts: Sequence[Prompt], multimask: bool = True
    ) -> list[MaskSet]:
        return self._service.sam_head.segment(image, prompts, multimask)


class OwnHead(Head):
    """Answers with the head of ``spec``. ``of`` makes the class of each one."""

    spec: ClassVar[str] = ""

    def __init__(
        self,
        settings: Settings,
        peer: Peer | None = None,
        sam_head: MaskHead | None = None,
        memory: MemoryTier | None = None,
    ):
        super().__init__(settings, peer, memory=memory)
        if sam_head is not None:
            self.sam_head = sam_head
        self.head = open_head(self.spec)
        self.parameters = Parameters(self.head)
        self._thread = ThreadPoolExecutor(1, "head")
        self._turns = asyncio.Semaphore(TURNS)
        self._until = math.inf  # the deadline of the request whose step runs now
        self._loading = asyncio.Lock()
        self.loaded = False

    @cached_property
    def sam_head(self) -> MaskHead:
        return replica.sam_head(self.settings)

    async def start(self) -> None:
        """Load the head. Raises any error of its code."""
        async with self._loading:
            if self.loaded:
                return
            model = OwnModel(self, asyncio.get_running_loop())
            await threads.run(self._thread, "load", self.head.load, model)
            heads.check(self.head)
            Ask(self.head).check_outputs(self.config)
            self.loaded = True

    async def check_health(self) -> None:
        await super().check_health()
        if monotonic() > self._until + HANGS_S:
            raise Unavailable(f"a step of the head {self.spec} does not end")

    async def close(self) -> None:
        await super().close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @rpc
    async def Ask(self, request: pb.AskRequest, context: RequestContext) -> pb.AskResponse:
        """Return the head's answer about an image.

        Raises NotFound for another head, InvalidRequest for parameters that do not fit, and the
        errors of ``encode`` and of the head.
        """
        name = self.application.removeprefix(HEAD)
        if request.head not in ("", name):
            raise NotFound(f"no head {request.head[:80]!r} answers here, only {name!r}")
        check_encoding(request.encoding)
        await self.start()
        given = await threads.run(self.workers, "decode", self.parameters.read, request.parameters)
        asked = Ask(self.head, given)
        info, features = await self.encode(context, request.image, asked)
        at_once = prompts_per_step(self.settings.device, self.settings.max_prompt_batch)
        terms = Terms(0, 0, at_once)  # a head's questions are a user's prompts
        async with self._turns:
            steps = await self.steps(context, features, asked, terms)
            watched = self._watched(steps, context.priority.deadline)
            found = await threads.run_steps(self._thread, watched, self._segment)
            reply = await result.encoded(
                self.workers, found, features.geometry, request.encoding, context.reply
            )
        reply.MergeFrom(pb.AskResponse(image=info, model=self.model_in(features.dtype)))
        return reply

    @rpc
    async def ListHeads(
        self, request: pb.ListHeadsRequest, context: RequestContext
    ) -> pb.ListHeadsResponse:
        """Return this head."""
        await self.start()
        listed = pb.ListedHead(
            name=self.application.removeprefix(HEAD),
            description=cleandoc(type(self.head).__doc__ or ""),
            outputs=[getattr(pb, output) for output in self.head.outputs],
            classes=self.head.classes,
            parameters=self.parameters.listed,
        )
        return pb.ListHeadsResponse(heads=[listed])

    async def _segment(self, question: Question) -> list[MaskSet]:
        return await threads.run(self._thread, "mask_decode", answer, self.sam_head, question)

    def _watched(self, steps: Steps[T], deadline: float) -> Steps[T]:
        """Run steps, and note until when the caller of the current one waits."""
        masks: list[MaskSet] | None = None
        while True:
            self._until = deadline
            try:
                step = advance(steps, masks)
            finally:
                self._until = math.inf
            if isinstance(step, Done):
                return step.result
            masks = yield step


def of(name: str, spec: str) -> type[OwnHead]:
    """Return the service of one head."""
    own = {"application": HEAD + name, "name": f"heads/{name}", "spec": spec}
    return type(OwnHead.__name__, (OwnHead,), own)


def build(settings: Settings) -> "Application":
    """Return the application of the only head in the settings, for ``serve.run``."""
    if len(settings.own_heads) != 1:
        raise SettingsError(
            f"heads is {','.join(settings.heads)!r}: an application has one head of one's own"
        )
    ((name, spec),) = settings.own_heads.items()
    head = None if ":" in spec else open_head(spec)  # code stays out of this process
    if isinstance(head, Probe):
        settings = _by_default(settings, head.model["digest"])
    return replica.of(of(name, spec), settings, gpus=0.25)


def _by_default(settings: Settings, digest: str) -> Settings:
    """Return settings whose default is the model with a digest, if one of several has it."""
    for own in settings.apart().values() if settings.models else ():
        with suppress(CheckpointError):  # of another model
            _, found = checkpoint.read_sealed_config(checkpoint.resolve(own.checkpoint))
            if found == digest:
                first, *others = sorted(settings.models, key=lambda entry: entry not in own.models)
                return settings.model_copy(update={"models": (first, *others)})
    return settings
