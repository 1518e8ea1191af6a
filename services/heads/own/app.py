"""A head of one's own as a Serve application, which harms no other by what it imports or does."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from inspect import cleandoc
from itertools import islice
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import head as heads
from samclip_core.answers.head import Ask
from samclip_core.answers.own import open_head
from samclip_core.answers.probe import Probe
from samclip_core.answers.steps import Done, Steps, Terms, advance
from samclip_core.errors import CheckpointError, NotFound, Unavailable
from samclip_core.io import checkpoint
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from services.batching.queue import prompts_per_step
from services.batching.threads import Places, Threads
from services.deployment import replica
from services.heads.head import HeadService
from services.heads.own import result
from services.heads.own.parameters import Parameters
from services.heads.runner import Runner, Step, in_thread
from services.request.context import RequestContext
from services.request.limits import check_labels
from services.request.routes import HEAD
from services.settings import Settings, SettingsError

if TYPE_CHECKING:
    from ray.serve import Application

T = TypeVar("T")
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
        """Ask the backbone, for which ``load`` waits up to START_S. Raises Unavailable.

        Not on the event loop, which would wait for itself.
        """
        context = self._service.asked_by
        end = min(monotonic() + START_S, context.priority.deadline)
        context = replace(context, priority=replace(context.priority, deadline=end))
        while True:
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


class OwnHead(HeadService):
    """Answers with the head of ``spec``. ``of`` makes the class of each one."""

    spec: ClassVar[str] = ""

    def __init__(self, settings: Settings, **given: Any):
        super().__init__(settings, **given)
        self.head = open_head(self.spec)
        self.parameters = Parameters(self.head)
        self._thread, self._turns = Threads("head", 1), Places("own_head", TURNS)
        self.asked_by = RequestContext()  # for which the head's code runs now
        self._since = math.inf  # when that code began
        self._loading = asyncio.Lock()
        self.loaded = False

    async def start(self) -> None:
        """Load the head. Raises any error of its code."""
        async with self._loading:
            if self.loaded:
                return
            model = OwnModel(self, asyncio.get_running_loop())
            await self._call("load", RequestContext(), partial(self.head.load, model))
            heads.check(self.head)
            Ask(self.head).check_outputs(self.config)
            self.loaded = True

    async def check_health(self) -> None:
        await super().check_health()
        # Its callers may have far less time; and a head may load for as long as it needs.
        if self.loaded and monotonic() > self._since + self.settings.request_timeout_s:
            raise Unavailable(f"a step of the head {self.spec} does not end")

    async def close(self) -> None:
        await super().close()
        self._thread.close()

    async def Ask(self, request: pb.AskRequest, context: RequestContext) -> pb.AskResponse:
        """Return the head's answer about an image.

        Raises NotFound for another head, InvalidRequest for parameters that do not fit, and the
        errors of ``encode`` and of the head.
        """
        name = self.application.removeprefix(HEAD)
        if request.head not in ("", name):
            raise NotFound(f"no head {request.head[:80]!r} answers here, only {name!r}")
        await self.start()
        read = partial(self.parameters.read, request.parameters)  # and its validators
        given = await self._call("decode", context, read)
        asked = _Asked(self.head, given, await self._labels(given, context))
        at_once = prompts_per_step(self.settings.device, self.settings.max_prompt_batch)
        terms = Terms(0, 0, at_once)  # a head's questions are a user's prompts
        priority = context.priority

        def encode(found: heads.Answer) -> Awaitable[pb.AskResponse]:
            size, encoding = runner.features.geometry, request.encoding
            return result.encoded(self.workers, priority, found, size, encoding, context.reply)

        def work(steps: Steps[Step], begun: float) -> Awaitable[Step]:
            return held(self._watched_steps(context, steps), begun)

        program: Steps[Any] = asked.program(self.config, terms)
        held = in_thread(self, self._thread, self._turns, priority, encode)
        runner = Runner(self, context, request.image, program, work)
        await runner.begin()
        reply: pb.AskResponse = await runner.result()
        model = self.model_in(runner.features.dtype)
        reply.MergeFrom(pb.AskResponse(image=runner.info, model=model))
        return reply

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

    async def _labels(self, given: Any, context: RequestContext) -> Sequence[str]:
        """Return the head's texts for these parameters. Raises InvalidLabels."""
        if getattr(self.head.texts, "__func__", None) is heads.Head.texts:
            return ()  # without a turn of the thread
        most = self.settings.max_labels

        def made() -> list[str]:
            texts = self.head.texts(given)
            if isinstance(texts, str):
                raise TypeError(f"texts of {self.spec} returned one text: expected a list")
            return [*islice(texts, most + 1)]

        if labels := await self._call("decode", context, made):
            check_labels(labels, most)
        return labels

    async def _call(self, stage: str, context: RequestContext, code: Callable[[], T]) -> T:
        """Call the head's code in its thread."""
        return await self._thread.run(context.priority, stage, self._watched, context, code)

    def _watched(self, context: RequestContext, code: Callable[[], T]) -> T:
        """Call the head's code, and note for which request and since when."""
        self.asked_by, self._since = context, monotonic()
        try:
            return code()
        finally:
            self.asked_by, self._since = RequestContext(), math.inf

    def _watched_steps(self, context: RequestContext, steps: Steps[T]) -> Steps[T]:
        masks: list[MaskSet] | None = None
        try:
            while True:
                step = self._watched(context, partial(advance, steps, masks))
                if isinstance(step, Done):
                    return step.result
                masks = yield step
        finally:
            self._watched(context, steps.close)


@dataclass(frozen=True, eq=False)
class _Asked(Ask):
    """A request whose texts the head has made already."""

    labels: Sequence[str] = ()

    @property
    def texts(self) -> Sequence[str]:
        return self.labels


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
    return replica.deploy(of(name, spec), settings, gpus=0.25)


def _by_default(settings: Settings, digest: str) -> Settings:
    """Return settings whose default is the model with a digest, if one of several has it."""
    for own in settings.per_model().values() if settings.models else ():
        with suppress(CheckpointError):  # of another model
            _, found = checkpoint.read_sealed_config(checkpoint.resolve(own.checkpoint))
            if found == digest:
                first, *others = sorted(settings.models, key=lambda entry: entry not in own.models)
                return settings.model_copy(update={"models": (first, *others)})
    return settings
