"""The ingress of every model service under Serve: it finds the model that answers a request.

One checkpoint answers a request from the first step to the last. A head sends the name of its
model, its digest and that of its graphs to the backbone; other graphs of the same weights are
another checkpoint. While a name gets new files, a replica of the backbone may not have loaded them
yet, or may have unloaded the old ones: the head then answers the whole request with its others.

Files that were changed where they are, as by ``samclip calibrate``, are loaded beside the others
when a service asks for them, or has no answer from the others any more.

Serve's ``user_config`` has the models. If one that is loaded gets other files, these are loaded and
warmed beside the current ones, and then answer first. If that fails, nothing changes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing, suppress
from typing import Any, ClassVar

from google.protobuf.message import Message
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import AnotherCheckpoint, SamClipError, Unavailable
from samclip_core.io import checkpoint
from services.deployment import models
from services.deployment.model import LoadedModel, Model, info
from services.deployment.models import Registry, finished
from services.observability import metrics
from services.request import messages
from services.request.context import RequestContext
from services.request.rpc import Answers, Service, model_of
from services.settings import Settings

CONFIGURED = ("checkpoint", "models", "model_idle_s", "max_models_bytes")
"""Settings of the models that may change at run time."""

logger = logging.getLogger(__name__)


class Ingress(Service):
    """Answers the rpcs of ``service`` with the model of each request. Made by ``ingress_class``."""

    service: ClassVar[type[Service]]

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.models = Registry(self.service, settings)
        self._at_start = settings
        self._swap: asyncio.Task[None] | None = None
        self._state = "done"

    def __del__(self) -> None:
        """Release the services; Serve calls this after the replica's last request."""
        self.models.drop()

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve the models that ``config`` names, with its values of ``tunable`` settings.

        Other settings keep their values from the start. At start this raises any error. Later it
        returns at once, since Serve sends a replica no requests while this runs, and stops it if
        this raises: an error is then logged and changes nothing.
        """
        if self._swap is not None:
            self._swap.cancel()
        if self.models.named:
            self._state = "under way"
            self._swap = asyncio.create_task(self._apply(config))
            return
        self.models.settings = self._chosen(config)
        await self.models.start()

    async def health(self) -> dict[str, Any]:
        default = self.models.default
        about = {"model": messages.to_json(default.info)}
        if default.held:
            with default.held[0].answering(used=False) as service:
                about = await service.health()
        return {**about, "swap": self._state}

    async def check_health(self) -> None:
        for model in self.models.every():
            for held in tuple(model.held):
                if not held.unloaded:
                    with held.answering(used=False) as service:
                        await service.check_health()

    async def run(self, method: str, request: Message, context: RequestContext) -> Answers:
        """Run the method with the first loaded files that can answer. Raises as ``_fitting`` does.

        A stream that has begun is never continued with others.
        """
        if isinstance(request, pb.ListModelsRequest):
            yield self.models.listed()
            return
        wanted, begun = checkpoint.shown(context.checkpoint + context.graphs), False
        error = AnotherCheckpoint(f"checkpoint {wanted} is not loaded here: try another")
        async with aclosing(self._fitting(request, context)) as fitting:
            async for held in fitting:
                if held.unloaded:
                    continue
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

    async def _fitting(
        self, request: Message, context: RequestContext
    ) -> AsyncGenerator[LoadedModel, None]:
        """Yield the loaded files that may answer, the best first, then those that replaced them.

        Raises NotFound, Unavailable.
        """
        name, wanted = model_of(request), context.checkpoint + context.graphs
        if wanted:  # a service asks for another one's part of a request
            model = self.models.with_files(wanted) or self.models.named.get(name)
            if model and not self.models.fitting(wanted):
                await self.models.ensure_loaded(model, context.priority)
            found = self.models.fitting(wanted)
        else:
            model = await self.models.model_for(request, context)
            metrics.MODEL_REQUESTS.labels(self.application, model.name).inc()
            await self.models.ensure_loaded(model, context.priority)
            found = [*model.held]
        for held in found:
            yield held
        if model and (renewed := await self._renewed(model, wanted)) and renewed not in found:
            yield renewed

    async def _renewed(self, model: Model, wanted: str) -> LoadedModel | None:
        """Return the files of a model, loaded, if these were changed where they are."""
        with suppress(SamClipError, OSError):
            about = await asyncio.to_thread(info, model.settings)
            identity = about.digest + about.graphs
            if not checkpoint.agree(identity, wanted or identity):
                return None
            if not any(held.identity == identity for held in model.held):
                self.models.refuse(model)
                if model.renewal is None or model.renewal.done():
                    model.renewal = asyncio.create_task(self._renew(model))
                await asyncio.wait([model.renewal])  # it goes on if the caller has gone
            return next((held for held in model.held if held.identity == identity), None)
        return None

    async def _renew(self, model: Model) -> None:
        settings, loaded = model.settings, list[LoadedModel]()
        with suppress(Unavailable), self.models.told(model):
            held = await self._load_counted(model, settings, loaded)
            if model.settings is settings:
                model.take(held)
                loaded.clear()
        await self._close(loaded)

    def _chosen(self, config: Mapping[str, Any]) -> Settings:
        return self._at_start.tuned(config, (*CONFIGURED, *self.service.tunable))

    async def _apply(self, config: Mapping[str, Any]) -> None:
        loaded: list[LoadedModel] = []
        try:
            await self._change(self._chosen(config), loaded)
            self._state = "done"
        except Exception:
            self._tune(self.models.settings)
            self._state = "failed: the previous checkpoint is still served; see the log"
            logger.exception("user_config %s of %s was not applied", config, self.application)
        finally:
            await self._close(loaded)

    async def _close(self, loaded: Sequence[LoadedModel]) -> None:
        for held in loaded:
            await finished(self.models.close(held))

    async def _change(self, settings: Settings, loaded: list[LoadedModel]) -> None:
        """Load the new files of models that are loaded, then take all settings over."""
        self._tune(settings)
        before, every = self.models.named, settings.per_model()
        default = self.models.default
        named = {name: before[name] for name in every if name in before}
        if default.name not in named:  # it has another name
            named.setdefault(settings.default, default)
        first, changed = dict[str, LoadedModel](), list[LoadedModel]()
        with ExitStack() as kept:
            while True:
                for name, model in named.items():
                    if model.held and name not in first:
                        first[name] = await self._find_or_load(model, every[name], loaded)
                        if first[name] not in model.held[:1]:
                            changed.append(first[name])
                            kept.enter_context(first[name].answering())  # not unloaded meanwhile
                for held in changed:
                    while not await held.service.usable():
                        await asyncio.sleep(models.AGAIN_S)
                async with self.models.load_lock:
                    # Meanwhile, requests may have loaded the former files.
                    if all(name in first for name, model in named.items() if model.held):
                        self._take_over(named, settings, first, loaded)
                        break
        await self.models.look()

    def _take_over(
        self,
        named: Mapping[str, Model],
        settings: Settings,
        first: Mapping[str, LoadedModel],
        loaded: list[LoadedModel],
    ) -> None:
        every = settings.per_model()
        for name, model in named.items():
            model.configure(name, every[name])
            if name in first and not first[name].unloaded:
                model.take(first[name])
        new = {name: Model(name, own) for name, own in every.items() if name not in named}
        self.models.serve({name: {**named, **new}[name] for name in every}, settings)
        self._tune(settings)
        loaded.clear()

    async def _find_or_load(
        self, model: Model, settings: Settings, loaded: list[LoadedModel]
    ) -> LoadedModel:
        """Return the files of these settings, which are ``loaded`` beside the current ones."""
        try:
            return await self._load_counted(model, settings, loaded)
        except Exception:
            metrics.MODEL_LOADS.labels(model.name, "failed").inc()
            raise

    async def _load_counted(
        self, model: Model, settings: Settings, loaded: list[LoadedModel]
    ) -> LoadedModel:
        about = await asyncio.to_thread(info, settings)
        # Exactly this one: ``agree`` would keep other graphs of the weights, or torch.
        for held in model.held:
            if held.identity == about.digest + about.graphs:
                return held
        # A head reads few of the files: verify all, or it accepts what other services refuse.
        directory = checkpoint.resolve(settings.checkpoint)
        await asyncio.to_thread(checkpoint.verify, directory)

        async def load() -> None:
            loaded.append(await self.models.load_for(model, settings))
            metrics.MODEL_LOADS.labels(model.name, "loaded").inc()

        async with self.models.load_lock:
            await finished(load())
        return loaded[-1]

    def _tune(self, settings: Settings) -> None:
        every = settings.per_model()
        for model in self.models.every():
            for held in model.held:
                held.service.tune(every.get(model.name, every[settings.default]))


def ingress_class(service: type[Service]) -> type[Ingress]:
    """Return the ingress class of a service. It has the same rpcs: Serve finds them by name."""
    called = (RPCS[name].name for name in service.rpcs)
    names = ("name", "application", "bulk", "tunable", "scope", *called)
    alike = {name: getattr(service, name) for name in names}
    return type(service.__name__, (Ingress,), {"service": service, **alike})
