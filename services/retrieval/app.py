"""The retrieval application: collections of images, searched by text, image or example."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from ray.serve import Application
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import combine
from samclip_core.answers.concepts import PREFIX
from samclip_core.answers.evidence import BESIDE, Words
from samclip_core.answers.objects import Sought
from samclip_core.errors import InvalidRequest, Unavailable
from samclip_core.io import checkpoint
from services.batching.priority import Priority
from services.deployment import replica
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import (
    MAX_FILTER,
    MAX_TOP_K,
    check_areas,
    check_deletion,
    check_example_messages,
    check_hit_pixels,
    check_listing,
    check_most,
    check_offset,
    check_range,
    check_text,
)
from services.retrieval import object_search
from services.retrieval.collection import Collection
from services.retrieval.engine import IndexThread
from services.retrieval.index import Collections, Description
from services.retrieval.index_rpc import IndexRpc
from services.retrieval.query import Query
from services.settings import Settings

TOP_K = 10
LISTED = 100
SEARCHED = 300
"""A search for this many hits, earlier pages included, counts as twice the work of a small one."""
HEALTH_S = 1.0
"""Timeout of the index's health check, below the two seconds of the gateway's readiness check."""
HEALTH = Priority(tenant="+health")
"""Of the health check, which is no tenant's."""
OF_INDEX = pb.DeleteRequest, pb.DescribeRequest, pb.ListItemsRequest
"""Requests that neither compute nor compare vectors."""


class Retrieval(IndexRpc):
    """Serves the collections, and the concepts of ConceptService. Replicas share them."""

    name = "RetrievalService"
    application = "retrieval"
    bulk = frozenset({"Index"})

    def __del__(self) -> None:
        """Drop the reference to the index, which closes with the last one."""
        vars(self).pop("index", None)

    @classmethod
    def shared(cls, settings: Settings) -> dict[str, Any]:
        return {**super().shared(settings), "index": IndexThread(settings)}

    @classmethod
    async def wanted(cls, request: Message, context: RequestContext, **shared: Any) -> str:
        """Return what made the vectors of a request, or of its collection if there is one.

        What works on the index alone needs no model: that of a collection may be damaged.
        """
        if isinstance(request, OF_INDEX):
            return ""
        if isinstance(request, pb.IndexRequest) and request.made_by.digest:
            return request.made_by.digest + request.made_by.graphs
        if not (name := getattr(request, "collection", "")):
            return ""
        index: IndexThread = shared["index"]

        def digest() -> str:
            found = index.collections("", 0).of_tenant(context.caller.tenant).find(name)
            return found.digest if found else ""

        return await index.run(context.priority, digest)

    async def health(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(HEALTH_S):
                count = await self.index.run(HEALTH, lambda: len(self.every_tenants()))
        except (Unavailable, TimeoutError):
            return {**await super().health(), "index": "does not answer"}
        return {**await super().health(), "index": "ready", "collections": count}

    def scope(self, request: Message) -> str:
        """Require ``index`` for changes, and ``admin`` to delete a whole collection."""
        if isinstance(request, pb.DeleteRequest):
            return "admin" if request.all else "index"
        changes = pb.IndexRequest, pb.PutConceptRequest, pb.DeleteConceptRequest
        return "index" if isinstance(request, changes) else "read"

    async def Search(self, request: pb.SearchRequest, context: RequestContext) -> pb.SearchResponse:
        """Return the items or objects of a collection nearest to a text, an image or a part of one.

        Needs CLIP_POOLED of an image, CLIP_DENSE for an area of it. Raises InvalidRequest,
        InvalidLabels, NotFound, and the errors of the index and the backbone.
        """
        check_range("top_k", request.top_k, MAX_TOP_K)
        check_offset(request.offset, request.top_k or TOP_K)
        check_most(len(request.filter), "a filter has {} pairs", MAX_FILTER)
        _check_parts(request)
        # They depend on the number of images that are compared, which a filter leaves open.
        likely = self.config.fitted.likely if _a_text(request) and not request.filter else None
        vector_D = await self._searched(context, request)
        with_D = await self._text(context, request.with_text) if request.with_text else None
        words = None
        if request.objects and vector_D is not None and _a_text(request):
            words = await self._words(context, request, vector_D)

        def search(ours: Collections) -> tuple[Sequence[Any], str, int]:
            collection = ours.get(request.collection)
            sought_D = collection.vector(request.id) if vector_D is None else vector_D
            if with_D is not None:
                sought_D = combine(sought_D, with_D, self.config.fitted.text_weight)
            query = Query(
                sought_D,
                request.top_k or TOP_K,
                request.offset,
                dict(request.filter),
                # An item is always nearest to itself.
                exclude=request.id if request.HasField("id") else None,
                min_score=request.min_score,
                sought=Sought.of(sought_D, self.config, words) if request.objects else None,
            )
            search = collection.search_objects if request.objects else collection.search
            return search(query), collection.dtype, len(collection) if likely else 0

        weight = 1 + (request.offset + (request.top_k or TOP_K)) / SEARCHED
        hits, dtype, count = await self.ask_index(context, search, weight)
        if request.objects:
            check_hit_pixels([found.crop or found.geometry for _, found in hits])
        drawn = object_search.drawn(hits) if request.objects else iter(hits)
        counted = context.reply.within(drawn)
        messages = await self.workers.drain(context.priority, "encode", counted)
        return pb.SearchResponse(
            hits=messages,
            model=self.model_in(dtype),
            likely_score=likely.among(count, objects=request.objects) if likely else 0,
        )

    async def Delete(self, request: pb.DeleteRequest, context: RequestContext) -> pb.DeleteResponse:
        """Delete items or a collection. Raises InvalidRequest, NotFound, the index's errors."""
        check_deletion(request)

        def deleted(ours: Collections) -> int:
            if request.all and not request.model:  # its table may not open
                return ours.drop(request.collection)
            found = _of(ours, request)
            return ours.drop(request.collection) if request.all else found.delete(request.ids)

        return pb.DeleteResponse(deleted=await self.ask_index(context, deleted))

    async def Describe(
        self, request: pb.DescribeRequest, context: RequestContext
    ) -> pb.DescribeResponse:
        """Return size and model of collections. Raises NotFound and the index's errors."""

        def described(ours: Collections) -> list[Description]:
            if request.collection:
                _of(ours, request)
            found = ours.describe(request.collection)
            mine = self.model.digest + self.model.graphs
            return [d for d in found if not request.model or checkpoint.agree(d.digest, mine)]

        found = await self.ask_index(context, described)
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
                    version=d.version,
                )
                for d in found
            ]
        )

    async def ListItems(
        self, request: pb.ListItemsRequest, context: RequestContext
    ) -> pb.ListItemsResponse:
        """Return ids and metadata, by id or page by page, with the vectors if ``inline``.

        Raises NotFound and the index's errors.
        """
        check_listing(request)
        after, limit = request.after_id, request.limit or LISTED

        def listed(ours: Collections) -> list[pb.ListedItem]:
            collection = _of(ours, request)
            ids = [*request.ids]
            found = collection.listed(ids) if ids else collection.items(after, limit)
            if request.inline:
                vectors = collection.vectors_of([item.id for item in found])
                for item in found:
                    if (vector_D := vectors.get(item.id)) is not None:
                        item.vector.CopyFrom(wire.to_tensor(vector_D))
            return found

        items = await self.ask_index(context, listed)
        counted = context.reply.within(items)
        shown = await self.workers.drain(context.priority, "encode", counted)
        return pb.ListItemsResponse(items=shown)

    async def _searched(
        self, context: RequestContext, request: pb.SearchRequest
    ) -> NDArray[np.float32] | None:
        """Return the vector to search for, D; None for that of an item, which the index has."""
        match request.WhichOneof("query"):
            case "text":
                check_text(request.text, "the text to search for")
                return await self._text(context, request.text)
            case "concept":
                return await self._text(context, PREFIX + request.concept)
            case "image" if request.HasField("area"):
                _, _, (vector_D,) = await self.embed_areas(context, request.image, [request.area])
                return vector_D
            case "image":
                vector_D, _ = await self._embed(context, request.image)
                return vector_D
            case "id":
                return None
            case "example":
                check_example_messages([request.example])
                return (await self.example(context, request.example)).clip_D
        raise InvalidRequest(
            "nothing to search for: send a text, an image, an example, an id or a concept"
        )

    async def _words(
        self, context: RequestContext, request: pb.SearchRequest, vector_D: NDArray[np.float32]
    ) -> Words:
        """Return a text with what stands beside it, to find which object of an image it means."""
        beside_ND = await self.backbone.class_embeddings(context, BESIDE, self.config.templates)
        vectors_ND = np.concatenate([vector_D[None], beside_ND])
        return Words.of([request.text], vectors_ND, self.config.logit_scale)

    async def _text(self, context: RequestContext, text: str) -> NDArray[np.float32]:
        """Return the vector of a text, D."""
        templates = self.config.templates
        (vector_D,) = await self.backbone.class_embeddings(context, [text], templates)
        return vector_D


def _of(
    ours: Collections, request: pb.DeleteRequest | pb.DescribeRequest | pb.ListItemsRequest
) -> Collection:
    """Return a collection of the model that a request names, else of any. Raises as ``get``."""
    get = ours.get if request.model else ours.of_any_model
    return get(request.collection)


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
    return replica.deploy(Retrieval, settings)
