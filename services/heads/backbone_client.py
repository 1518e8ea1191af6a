"""Embeddings for the heads: from the cache, or from the backbone over gRPC.

bytes → hash → cache? ──hit──→ features
                 └─miss → BackboneService.Embed → cache of this process → features
"""

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import concepts
from samclip_core.answers.request import NO_TEXTS
from samclip_core.answers.zero_shot import class_embeddings, class_texts
from samclip_core.errors import (
    AnotherCheckpoint,
    DeadlineExceeded,
    KeyUnknown,
    Overloaded,
)
from samclip_core.geometry import FloatArray
from samclip_core.io import checkpoint
from samclip_core.types import ImageFeatures
from services.batching.priority import Priority
from services.batching.threads import Threads
from services.cache.embedding_cache import Caches
from services.cache.entry import at_size, computed
from services.observability import metrics
from services.request import calls, wire
from services.request.calls import Header, Peer
from services.request.context import CHECKPOINT, GRAPHS, IMAGE_KEY, RequestContext

Classes = tuple[tuple[str, ...], tuple[str, ...]]  # labels, templates

FindConcepts = Callable[[RequestContext, Sequence[str]], Awaitable[Mapping[str, FloatArray]]]
"""Returns the vectors D of concepts of the caller's tenant, by name."""

TEXTS_KEPT = 10_000
TEXTS_AT_ONCE = 256
"""Most texts of one call. Those of an answered call are kept, so a question that is repeated after
its deadline embeds only the others."""
CLASSES_KEPT = 16
"""Sets of labels and templates. Most callers repeat the same few."""
REFUSED_S = 0.1
"""Time that a refusal applies. It covers requests that have up to this much more time."""


class _Refusal:
    """The last refusal of an overloaded backbone, which applies for a moment to similar requests.

    Calls that are refused cost throughput: at three times the images that the backbone can encode,
    they take a third of it.
    """

    def __init__(self) -> None:
        self._until = -math.inf
        self._left_s, self._priority = 0.0, Priority()  # of the request that was refused

    @contextmanager
    def applied(self, priority: Priority, alone: bool = True) -> Iterator[None]:
        """Raise Overloaded without a call if a request of the tenant was refused just now.

        Not for one that is more urgent. A refused image is remembered if it was sent ``alone``:
        texts need a time of their own. Raises DeadlineExceeded if the request has no time left.
        """
        now = monotonic()
        left_s = priority.deadline - now
        if left_s <= 0:
            raise DeadlineExceeded("the deadline has passed: send the request with more time")
        refused = self._priority
        alike = priority.tenant == refused.tenant and priority.bulk >= refused.bulk
        if now < self._until and alike and left_s <= self._left_s + REFUSED_S:
            metrics.SHED.labels("busy").inc()
            raise Overloaded("the encoder cannot finish its queue in time: try again later")
        try:
            yield
        except Overloaded:
            if alone and monotonic() >= self._until:  # else of a call made before the last refusal
                self._until = monotonic() + REFUSED_S
                self._left_s, self._priority = left_s, priority
            raise


def _rows(tensor: pb.Tensor) -> list[NDArray[np.float32]]:
    """Return a copy of each row: a view would keep the whole response in memory."""
    return [row.copy() for row in wire.from_tensor(tensor)]


class BackboneClient:
    """Client of the backbone with a cache of embeddings. For one event loop.

    ``image_size`` is the side of the frame that masks need. ``identity`` is that of the caller's
    checkpoint: embeddings of another one, or of other graphs, are refused. ``name`` is the model's
    at the backbone, "" for its default.

    The cache is the one of ``caches`` for the precision and the ``graphs`` that the backbone last
    reported. Until the backbone has reported them, the client does not look up the cache.
    """

    def __init__(
        self,
        peer: Peer,
        image_size: int,
        identity: str,
        caches: Caches,
        max_image_bytes: int,
        find_concepts: FindConcepts | None = None,
        name: str = "",
    ):
        self.graphs = ""
        self._name = name
        self._peer = peer
        self._image_size = image_size
        self._identity = identity
        self._max_image_bytes = max_image_bytes
        # A backbone behind the same front door trusts our tenants and image keys.
        self._trusted = calls.SECRET_HEADER in dict(peer.metadata)
        self._caches = caches
        self._find_concepts = find_concepts
        self._dtype: str | None = None
        self.cache = caches("")
        self._hashers = Threads("hash")
        self.know({})
        self._travelling = set[str]()  # texts that go with an image to the backbone now
        self._refusal = _Refusal()

    async def features(
        self,
        context: RequestContext,
        image: pb.Image,
        *outputs: pb.Output,
        size: int = 0,
        texts: Callable[[], Sequence[str]] = list,
    ) -> tuple[pb.ImageInfo, ImageFeatures]:
        """Return the embeddings of an image, given as a file or key; it is not decoded here.

        ``size`` is the side of the model frame (0: ``image_size``). If the backbone is asked, those
        of ``texts()`` that are new, and go with no other image now, go with this one, and
        ``embed_text`` knows them afterwards. Raises the backbone's errors unchanged, Unavailable
        and AnotherCheckpoint. An image over ``max_image_bytes`` is neither hashed nor sent.
        """
        size = size or self._image_size
        source = wire.image_source(image, self._max_image_bytes)
        by_key = isinstance(source, str)
        if isinstance(source, str):
            key = source
        else:
            key = await self._hashers.image_key(context.priority, source)
        cache_key = at_size(context.caller.cache_key(key), size, self._image_size)
        proven: tuple[Header, ...] = ()
        if self._dtype is not None:
            dtype = self._dtype  # of this cache, which may be replaced during the look-up
            entries = await self.cache.get(cache_key, outputs, context.priority)
            if entries is not None:
                features = wire.to_features(entries, dtype)
                return wire.image_info(key, features.geometry, cached=True), features
            if self._trusted and not by_key:
                proven = ((IMAGE_KEY, key),)
        if by_key and context.caller.scopes is not None and not self._trusted:
            # A remote backbone sees all tenants as one: it may know the key from another tenant.
            raise KeyUnknown(f"the image key {key[:64]!r} is not cached here: send the image")
        asked = dict.fromkeys(texts())
        new = [text for text in asked if not self._has(text) and text not in self._travelling]
        new = new[:TEXTS_AT_ONCE]  # ``embed_text`` asks for the others
        request = pb.EmbedRequest(image=image, outputs=outputs, inline=True, size=size, texts=new)
        # A look-up by key costs the backbone nothing and may succeed, so it is always made.
        applied = nullcontext() if by_key else self._refusal.applied(context.priority, not new)
        self._travelling.update(new)
        try:
            with applied:
                response = await self._call("Embed", request, context, *proven)
        finally:
            self._travelling.difference_update(new)
        if response.HasField("texts"):
            self._texts.update(zip(new, _rows(response.texts), strict=True))
        entries = wire.to_entries(response, size)
        self.cache.keep(cache_key, entries)  # now the response's cache: see ``_call``
        return response.image, wire.to_features(entries, response.model.dtype)

    async def class_embeddings(
        self, context: RequestContext, labels: Sequence[str], templates: Sequence[str]
    ) -> NDArray[np.float32]:
        """Return one unit-length row per label, the mean over the templates: L×D, read-only.

        A label may be a concept of the caller's tenant. Raises NotFound.
        """
        if names := concepts.names_in(labels):
            texts, text_TD = concepts.texts_in(labels), NO_TEXTS
            if texts:
                text_TD = await self.class_embeddings(context, texts, templates)
            assert self._find_concepts is not None
            # Not cached: another replica may have replaced them.
            found = await self._find_concepts(context, names)
            return concepts.among_texts(labels, found, text_TD)
        classes = tuple(labels), tuple(templates)
        if (known := self._classes.get(classes)) is not None:
            return known
        texts = class_texts(labels, templates)
        row = dict(zip(texts, await self.embed_text(context, texts), strict=True))
        made = class_embeddings(lambda all: np.stack([row[text] for text in all]), *classes)
        made.setflags(write=False)
        self._classes[classes] = made
        return made

    async def embed_text(
        self, context: RequestContext, texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """Return one unit-length row per text, T×D; recent texts are cached."""
        known = self._texts
        rows = {text: known[text] for text in texts if text in known}
        missing = [text for text in dict.fromkeys(texts) if not self._has(text)]
        for first in range(0, len(missing), TEXTS_AT_ONCE):
            some = missing[first : first + TEXTS_AT_ONCE]
            response = await self._call("EmbedText", pb.EmbedTextRequest(texts=some), context)
            if rows and known is not self._texts:  # other graphs made them
                return await self.embed_text(context, texts)
            known, made = self._texts, dict(zip(some, _rows(response.tensor), strict=True))
            known.update(made)
            rows |= made
        return np.stack(
            [self._known[text] if text in self._known else rows[text] for text in texts]
        )

    def _has(self, text: str) -> bool:
        return text in self._known or text in self._texts

    def know(self, texts: Mapping[str, FloatArray]) -> None:
        """Keep the vectors D of these texts, which the checkpoint has, and forget all others."""
        self._known, self._texts = texts, LRUCache[str, FloatArray](TEXTS_KEPT)
        self._classes = LRUCache[Classes, NDArray[np.float32]](CLASSES_KEPT)

    async def close(self) -> None:
        await self._peer.close()
        await self.cache.close()
        self._hashers.close()

    async def _call(self, rpc: str, request: Any, context: RequestContext, *more: Header) -> Any:
        request.model = self._name
        digest, graphs = self._identity[: checkpoint.DIGITS], self._identity[checkpoint.DIGITS :]
        wanted = (CHECKPOINT, digest), (GRAPHS, graphs)
        response = await self._peer.call(rpc, request, context, *wanted, *more)
        self._follow(response.model)
        return response

    def _follow(self, model: pb.ModelInfo) -> None:
        """Use the caches of the model that has answered. Raises AnotherCheckpoint."""
        theirs = model.digest + model.graphs
        if not checkpoint.agree(theirs, self._identity):
            raise AnotherCheckpoint(
                f"{self._peer.name} serves another checkpoint "
                f"({checkpoint.shown(theirs)}, expected {checkpoint.shown(self._identity)}): try "
                "again when both have been updated"
            )
        if model.graphs != self.graphs:
            self.know(self._known)
        if (model.dtype, model.graphs) != (self._dtype, self.graphs):
            self._dtype, self.graphs = model.dtype, model.graphs
            self.cache = self._caches(computed(model.dtype, model.graphs))
