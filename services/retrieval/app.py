"""The retrieval application: collections of images, searched by text, image or example."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from ray.serve import Application
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import combine
from samclip_core.answers.concepts import PREFIX
from samclip_core.answers.objects import Sought
from samclip_core.answers.steps import Steps
from samclip_core.answers.words import BESIDE, Words
from samclip_core.errors import InvalidRequest, Unavailable
from samclip_core.io import checkpoint
from services.batching import threads
from services.deployment import replica
from services.request.context import Priority, RequestContext
from services.request.limits import (
    check_areas,
    check_deletion,
    check_example_messages,
    check_filter,
    check_hit_pixels,
    check_listing,
    check_offset,
    check_text,
    check_top_k,
)
from services.request.rpc import Messages, rpc
from services.retrieval import objects
from services.retrieval.concepts import Concepts
from services.retrieval.engine import OwnIndex
from services.retrieval.index import Collection, Collections
from services.retrieval.index_rpc import IndexRpc
from services.retrieval.query import Query
from services.settings import Settings

TOP_K = 10
LISTED = 100
HEALTH_S = 1.0
"""Timeout of the index's health check, below the two seconds of the gateway's readiness check."""
HEALTH = Priority(tenant="+health")
"""Of the health check, which is no tenant's."""
ITEMS_PER_CALL = 100
"""Items that take the time of a small call to add."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Retrieval(IndexRpc):
    """Serves the collections, and the concepts of ConceptService. Exactly one replica may run."""

    name = "RetrievalService"
    application = "retrieval"
    bulk = frozenset({"Index"})

    def __init__(self, settings: Settings, index: OwnIndex | None = None):
        super().__init__(settings)
        self._index = index or OwnIndex(settings)
        try:
            self._every_tenants()
        except Unavailable as error:
            logger.warning("starting without the index: %s", error)

    def __del__(self) -> None:
        """Drop the reference to the index, which closes with the last one."""
        vars(self).pop("_index", None)

    def successor(self, settings: Settings) -> "Retrieval":
        return Retrieval(settings, self._index)

    async def health(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(HEALTH_S):
                count = await self._index.run(HEALTH, lambda: len(self._every_tenants()))
        except (Unavailable, TimeoutError):
            return {**await super().health(), "index": "does not answer"}
        return {**await super().health(), "index": "ready", "collections": count}

    def scope(self, method: str, request: Message | Messages) -> str:
        """Require ``index`` for changes, and ``admin`` to delete a whole collection."""
        if isinstance(request, pb.DeleteRequest):
            return "admin" if request.all else "index"
        changes = pb.IndexRequest, pb.PutConceptRequest, pb.DeleteConceptRequest
        return "index" if isinstance(request, changes) else "read"

    @rpc
    async def Search(self, request: pb.SearchRequest, context: RequestContext) -> pb.SearchResponse:
        check_top_k(request.top_k)
        check_offset(request.offset, request.top_k or TOP_K)
        check_filter(request.filter)
        _check_parts(request)
        name = request.collection
        found = await self.ask_index(context, lambda ours: ours.get(name))
        vector_D = await self._searched(context, request)
        sought = await self._sought(context, request, vector_D) if request.objects else None
        query = Query(
            vector_D,
            request.top_k or TOP_K,
            request.offset,
            dict(request.filter),
            # An item is always nearest to itself.
            exclude=request.id if request.HasField("id") else None,
            min_score=request.min_score,
            sought=sought,
        )
        if request.objects:
            best = await self._search(context, name, lambda it: it.search_objects_steps(query))
            check_hit_pixels([found.geometry for _, found in best])
            hits = objects.drawn(best)
        else:
            hits = iter(await self._search(context, name, lambda it: it.search_steps(query)))
        messages = await threads.drain(self.workers, "encode", context.reply.within(hits))
        return pb.SearchResponse(
            hits=messages,
            model=self.model_in(found.dtype),
            likely_score=await self._likely_score(context, request),
        )

    @rpc
    async def Delete(self, request: pb.DeleteRequest, context: RequestContext) -> pb.DeleteResponse:
        check_deletion(request)
        if request.all:
            deleted = await self.ask_index(context, lambda ours: ours.drop(request.collection))
        else:
            deleted = await self.ask_index(
                context, lambda ours: ours.get(request.collection).delete(request.ids)
            )
        return pb.DeleteResponse(deleted=deleted)

    @rpc
    async def Describe(
        self, request: pb.DescribeRequest, context: RequestContext
    ) -> pb.DescribeResponse:
        found = await self.ask_index(context, lambda ours: ours.describe(request.collection))
        return pb.DescribeResponse(
            collections=[
                pb.Collection(
                    name=d.name,
                    count=d.count,
                    dimension=d.dimension,
                    model_digest=d.digest[: checkpoint.DIGITS],
                    graphs=d.digest[checkpoint.DIGITS :],
                    dtype=d.dtype,
                    objects=d.objects,
                )
                for d in found
            ]
        )

    @rpc
    async def ListItems(
        self, request: pb.ListItemsRequest, context: RequestContext
    ) -> pb.ListItemsResponse:
        check_listing(request)
        after, limit = request.after_id, request.limit or LISTED

        def listed(ours: Collections) -> list[pb.ListedItem]:
            found = ours.of_any_model(request.collection)
            return found.listed(request.ids) if request.ids else found.items(after, limit)

        items = await self.ask_index(context, listed)
        shown = await threads.drain(self.workers, "encode", context.reply.within(items))
        return pb.ListItemsResponse(items=shown)

    async def _likely_score(self, context: RequestContext, request: pb.SearchRequest) -> float:
        """Return the score of a hit that a text probably describes; 0 if it is not known.

        It depends on the number of images that are compared, which a filter leaves open.
        """
        likely = self.config.fitted.likely
        if likely is None or not _a_text(request) or request.filter:
            return 0.0
        count = await self.ask_index(context, lambda ours: len(ours.get(request.collection)))
        return likely.among(count, objects=request.objects)

    async def _searched(
        self, context: RequestContext, request: pb.SearchRequest
    ) -> NDArray[np.float32]:
        """Return the vector to search for, D."""
        match request.WhichOneof("query"):
            case "text":
                check_text(request.text, "the text to search for")
                return await self._text(context, request.text)
            case "concept":
                return await self._text(context, PREFIX + request.concept)
            case "image" if request.HasField("area"):
                _, _, (vector_D,) = await self.embed_areas(context, request.image, [request.area])
            case "image":
                vector_D, _ = await self._embed(context, request.image)
            case "id":
                vector_D = await self.ask_index(
                    context, lambda ours: ours.get(request.collection).vector(request.id)
                )
            case "example":
                check_example_messages([request.example])
                vector_D = (await self.example(context, request.example)).clip_D
            case _:
                raise InvalidRequest(
                    "nothing to search for: send a text, an image, an example, an id or a concept"
                )
        if request.with_text:
            text_D = await self._text(context, request.with_text)
            return combine(vector_D, text_D, self.config.fitted.text_weight)
        return vector_D

    async def _sought(
        self, context: RequestContext, request: pb.SearchRequest, vector_D: NDArray[np.float32]
    ) -> Sought:
        """Return what says which object of an image is meant."""
        text = request.text
        if not _a_text(request):
            return Sought.of(vector_D, self.config)
        beside_ND = await self.backbone.class_embeddings(context, BESIDE, self.config.templates)
        vectors_ND = np.concatenate([vector_D[None], beside_ND])
        words = Words.of([text], vectors_ND, self.config.logit_scale)
        return Sought.of(vector_D, self.config, words)

    async def _text(self, context: RequestContext, text: str) -> NDArray[np.float32]:
        """Return the vector of a text, D."""
        templates = self.config.templates
        (vector_D,) = await self.backbone.class_embeddings(context, [text], templates)
        return vector_D

    async def ask_index(
        self, context: RequestContext, work: Callable[[Collections], T], adding: int = 0
    ) -> T:
        """Do work, which adds so many items, on the collections of the caller's tenant.

        Raises Unavailable.
        """
        tenant = context.caller.tenant
        if adding:
            self._index.put_off(adding)
        return await self._index.run(
            context.priority,
            lambda: work(self._every_tenants().of_tenant(tenant)),
            1 + adding / ITEMS_PER_CALL,
        )

    async def _search(
        self, context: RequestContext, name: str, search: Callable[[Collection], Steps[T]]
    ) -> T:
        """Search one of the caller's collections in steps."""
        tenant = context.caller.tenant
        return await self._index.run_steps(
            context.priority, lambda: search(self._every_tenants().of_tenant(tenant).get(name))
        )

    async def ask_concepts(self, context: RequestContext, work: Callable[[Concepts], T]) -> T:
        tenant, config = context.caller.tenant, self.config
        sizes = config.text_dim, config.embed_dim if config.masks else 0
        return await self._index.run(
            context.priority,
            lambda: work(Concepts(self._every_tenants(), tenant, self.model.digest, *sizes)),
        )

    def _every_tenants(self) -> Collections:
        model = self.model.digest + self.model.graphs
        return self._index.collections(model, self.config.text_dim)


def _a_text(request: pb.SearchRequest) -> bool:
    """Return whether a text is searched for, and not a concept."""
    return bool(request.text) and not request.text.startswith(PREFIX)


def _check_parts(request: pb.SearchRequest) -> None:
    """Raise InvalidRequest for parts that do not go together, or a score that is no cosine."""
    if not -1 <= request.min_score <= 1:
        raise InvalidRequest(f"min_score is {request.min_score}, expected a cosine from -1 to 1")
    query = request.WhichOneof("query")
    if request.HasField("area"):
        if query != "image":
            raise InvalidRequest("an area without its image: send the image that it is a part of")
        check_areas([request.area], 1, 1)
    if request.with_text:
        if query not in ("image", "id"):
            raise InvalidRequest(
                "with_text is for a search by image or id: send one of these, or the text as text"
            )
        check_text(request.with_text, "with_text")


def build(settings: Settings) -> Application:
    """Return the application for ``serve.run``."""
    return replica.of(Retrieval, settings)
