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
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

from google.protobuf.message import Message
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import AnotherCheckpoint, SamClipError, Unavailable
from samclip_core.io import checkpoint
from services.deployment import models
from services.deployment.model import ServedModel, info
from services.deployment.models import Registry
from services.observability import metrics
from services.request.context import RequestContext
from services.request.rpc import Answers, Service, model_of, over_grpc, rpcs_of
from services.request.to_json import to_json
from services.settings import Settings

CONFIGURED = ("checkpoint", "models", "model_idle_s", "max_models_bytes")
"""Settings of the models that may change at run time."""

logger = logging.getLogger(__name__)


class Ingress(Service):
    """Answers the rpcs of ``service`` with the model of each request."""

    def __init__(self, service: type[Service], settings: Settings):
        self.service, self.name, self.application = service, service.name, service.application
        self.bulk = service.bulk
        super().__init__(settings)
        self.models = Registry(service, settings)
        self._at_start = settings
        self._swap: asyncio.Task[None] | None = None
        self._state = "done"

    def __getattr__(self, name: str) -> Any:
        """Return the gRPC side of the rpcs of a name in the proto: Serve asks for it by that."""
        service = vars(self).get("service")
        if not (rpcs := [rpc for rpc in rpcs_of(service) if RPCS[rpc].name == name]):
            raise AttributeError(name)
        return over_grpc(self, rpcs)

    def scope(self, request: Message) -> str:
        return self.service.scope(self, request)

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
        about = {"model": to_json(default.info)}
        if default.service:
            with default.answering(used=False) as service:
                about = await service.health()
        return {**about, "swap": self._state}

    def listed(self) -> pb.ListModelsResponse:
        """Return all models in the order of the settings, and the aliases."""
        made, settings = [], self.models.settings
        for name in settings.named:
            made.append(self.models.find(name).served())
            made[-1].default = name == settings.default
            if name in settings.aliases:
                made[-1].name, made[-1].alias_of = name, made[-1].name
        return pb.ListModelsResponse(models=made)

    async def check_health(self) -> None:
        for model in self.models.every():
            if model.service:
                with model.answering(used=False) as service:
                    await service.check_health()

    async def run(self, method: str, request: Message, context: RequestContext) -> Answers:
        """Run the method with the first loaded files that can answer. Raises as ``_fitting`` does.

        A stream that has begun is never continued with others.
        """
        if isinstance(request, pb.ListModelsRequest):
            yield self.listed()
            return
        wanted, begun = checkpoint.shown(context.checkpoint + context.graphs), False
        error = AnotherCheckpoint(f"checkpoint {wanted} is not loaded here: try another")
        async with aclosing(self._fitting(request, context)) as fitting:
            async for model in fitting:
                if not model.service:  # it was unloaded meanwhile
                    continue
                with model.answering() as service:
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
    ) -> AsyncGenerator[ServedModel, None]:
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
            found = self.models.of_name(model)
        for one in found:
            yield one
        if model and (renewed := await self._renewed(model, wanted)) and renewed not in found:
            yield renewed

    async def _renewed(self, model: ServedModel, wanted: str) -> ServedModel | None:
        """Return the files of a model, loaded, if these were changed where they are."""
        with suppress(SamClipError, OSError):
            about = await asyncio.to_thread(info, model.settings)
            identity = about.digest + about.graphs
            if not checkpoint.agree(identity, wanted or identity):
                return None
            model.refuse()
            if model.renewal is None or model.renewal.done():
                model.renewal = asyncio.create_task(self._renew(model))
            await asyncio.wait([model.renewal])  # continues without the caller
            several = self.models.of_name(model)
            return next((one for one in several if one.identity == identity), None)
        return None

    async def _renew(self, model: ServedModel) -> None:
        new = ServedModel(model.name, model.settings)
        with suppress(Unavailable), model.told():
            try:
                async with self.models.beside(model, new) as renewed:
                    named = self.models.named
                    if named.get(model.name) is model is not renewed:
                        self.models.serve({**named, model.name: renewed}, self.models.settings)
            finally:
                model.late = new.late or model.late

    async def _apply(self, config: Mapping[str, Any]) -> None:
        try:
            await self._change(self._chosen(config))
            self._state = "done"
        except Exception:
            self._tune(self.models.settings)
            self._state = "failed: the previous checkpoint is still served; see the log"
            logger.exception("user_config %s of %s was not applied", config, self.application)

    def _chosen(self, config: Mapping[str, Any]) -> Settings:
        return self._at_start.tuned(config, (*CONFIGURED, *self.service.tunable))

    async def _change(self, settings: Settings) -> None:
        """Load the new files of models that are loaded, then take all settings over."""
        self._tune(settings)
        before, default = dict(self.models.named), self.models.default
        if default.name not in settings.per_model():  # it has another name
            before.setdefault(settings.default, default)
        named = {name: ServedModel(name, own) for name, own in settings.per_model().items()}
        new = [*named.values()]
        for name in named.keys() & before.keys():
            files = before[name].settings.checkpoint
            if not before[name].service and files == named[name].settings.checkpoint:
                named[name] = before[name]
        try:
            await self._load_changed(before, named)
        except BaseException:
            for model in new:
                model.unwanted = model not in self.models.named.values()
            raise
        self.models.serve(named, settings)
        await self.models.look()

    async def _load_changed(
        self, before: Mapping[str, ServedModel], named: dict[str, ServedModel]
    ) -> None:
        """Put models with the new files, loaded, into ``named``, where the former ones are."""
        async with AsyncExitStack() as kept:  # none is unloaded before all answer
            while waiting := [
                (name, old)
                for name, old in before.items()
                if (old.service or old.loading) and name in named
                if named[name] is not old and not named[name].service
            ]:  # until none is left: during a load, requests may load other former files
                for name, old in waiting:
                    with named[name].told():
                        beside = self.models.beside(old, named[name])
                        new = named[name] = await kept.enter_async_context(beside)
                    service = None if new is old else new.service
                    while service and not await service.usable():
                        await asyncio.sleep(models.AGAIN_S)

    def _tune(self, settings: Settings) -> None:
        every = settings.per_model()
        for model in self.models.every():
            if model.service:
                model.service.tune(every.get(model.name, every[settings.default]))
