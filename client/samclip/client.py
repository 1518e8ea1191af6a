"""Clients for a running service: ``Client``, whose calls block, and ``AsyncClient``.

All calls raise ``samclip.ServiceError``.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager

import grpc
import grpc.aio
import numpy as np

from samclip import heads, wire
from samclip.connection import Connection
from samclip.heads import ServedHead
from samclip.images import ImageSource
from samclip.many_photos import AsyncPhotos, Images, Photos, to_index
from samclip.photo import AsyncPhoto, Photo
from samclip.thumbnails import index
from samclip.transport import blocking
from samclip.types import (
    Box,
    Collection,
    Concept,
    Example,
    Hit,
    Indexed,
    ListedItem,
    Mask,
    ServedModel,
    Tiles,
)
from samclip.v1 import samclip_pb2 as pb

_NO_METADATA: Mapping[str, Mapping[str, str]] = {}


class AsyncClient(Connection[AsyncPhoto, AsyncPhotos], AbstractAsyncContextManager["AsyncClient"]):
    """A client for ``async`` code: the methods of ``Client``, with requests as coroutines.

    >>> async def main():
    ...     async with samclip.AsyncClient("127.0.0.1:9000") as client:
    ...         photo = client.image("cat.jpg")
    ...         return await asyncio.gather(photo.classify(["a cat"]), photo.segment((200, 60)))
    >>> scores, masks = asyncio.run(main())
    """

    _library = grpc.aio
    _photo = AsyncPhoto
    _photos = AsyncPhotos

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and cancel calls in progress."""
        await self._session.close()

    async def models(self) -> list[ServedModel]:
        """Return the models that the service has under their names, the default one first.

        >>> [model.name for model in client.models() if model.default]
        ['edge']
        """
        reply = await self._session.ask(pb.ListModelsRequest())
        return [wire.like(ServedModel, found) for found in reply.models]

    async def heads(self) -> list[ServedHead]:
        """Return the heads of one's own that the service has, for ``Photo.ask``."""
        return heads.listed(await self._session.ask(pb.ListHeadsRequest()))

    async def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 (T, D) with rows of unit length, in the space of ``Photo.embed``.

        >>> cosines = client.embed_text(["a cat", "a cup"]) @ client.image("cat.jpg").embed()
        >>> int(cosines.argmax())
        0
        """
        reply = await self._session.ask(wire.request(pb.EmbedTextRequest, texts=wire.texts(texts)))
        return wire.tensor_to_array(reply.tensor)

    async def index(
        self,
        collection: str,
        images: Mapping[str, ImageSource | AsyncPhoto] | Images,
        *,
        metadata: Mapping[str, Mapping[str, str]] = _NO_METADATA,
        objects: bool = False,
        tiles: Tiles = 0,
        thumbnails: bool = True,
    ) -> Indexed:
        """Add images to a collection, in as many requests as their sizes require.

        images: id → image; or a folder, a glob, a path, or several: the id of a file is then its
        name, or its path in the given folder.
        metadata: id → metadata that searches return and filter by.
        objects: also index the objects in the images, for ``search`` with objects. It takes
        seconds per image.
        tiles: with objects, find them in tiles of each image as well, as in ``Photo.segment``.
        thumbnails: keep a small picture of each image in its metadata, which the playground shows.
        ``Indexed.errors`` lists images that cannot be read or indexed; the others are indexed.

        >>> done = client.index("things", {"a": "cat.jpg", "b": "photographs/coffee.jpg"})
        >>> done.indexed, done.errors
        (2, {})
        >>> client.index("folder", "photographs").errors.keys()
        dict_keys(['torn.jpg'])
        """
        errors: dict[str, str] = {}
        indexed = replaced = 0
        found = to_index(images, metadata)
        several = wire.tiles(tiles)
        most = wire.CHUNK_WITH_OBJECTS if objects else wire.CHUNK_ITEMS
        most = 1 if several else most
        chunks = wire.chunks(self._items(found, metadata, errors, thumbnails), most)
        blocking = self._library is grpc
        while chunk := next(chunks, []) if blocking else await asyncio.to_thread(next, chunks, []):
            request = wire.request(
                pb.IndexRequest,
                collection=collection,
                items=chunk,
                objects=objects,
                tiles=several,
            )
            done = await index(self._session, request)
            indexed, replaced = indexed + done.indexed, replaced + done.replaced
            errors |= done.errors
        return Indexed(indexed, errors, replaced)

    async def search(  # noqa: PLR0913 - the public interface
        self,
        collection: str,
        *,
        text: str | None = None,
        image: ImageSource | AsyncPhoto | None = None,
        id: str | None = None,
        concept: str | None = None,
        top_k: int = 0,
        filter: Mapping[str, str] | None = None,
        offset: int = 0,
        box: Box | None = None,
        mask: np.ndarray | Mask | None = None,
        with_text: str = "",
        min_score: float = 0.0,
        objects: bool = False,
    ) -> list[Hit]:
        """Return the images most similar to one query, best first.

        text: what they show. image: an image like them. id: an indexed image like them. concept:
        what they show, by its name.

        box, mask: search by this part of ``image``, as in ``classify_areas``.
        with_text: with image or id, prefer images that this text describes as well.
        top_k: number of hits; 0 means 10.
        filter: only images whose metadata has all of these pairs.
        offset: number of hits to skip; the next page starts at offset + top_k.
        min_score: leave out hits whose score is lower.
        objects: return the images with the most similar objects, each with the box and mask of its
        best one; for images that were indexed with objects.

        >>> files = {"a": "cat.jpg", "b": "photographs/coffee.jpg"}
        >>> _ = client.index("things", files, metadata={"b": {"owner": "ann"}})
        >>> [hit.id for hit in client.search("things", text="a cup of coffee")]
        ['b', 'a']
        >>> client.search("things", image="cat.jpg", filter={"owner": "ann"})[0].metadata["owner"]
        'ann'
        """
        if sum(query is not None for query in (text, image, id, concept)) != 1:
            raise ValueError("search takes exactly one of text=, image=, id= and concept=")
        areas = wire.areas(() if box is None else box, () if mask is None else [mask])
        if len(areas) > 1 or (areas and image is None):
            raise ValueError("search by a part of an image takes image=, and either box= or mask=")
        request = wire.request(
            pb.SearchRequest,
            collection=collection,
            text=text,
            id=id,
            concept=concept,
            top_k=top_k,
            filter=filter,
            offset=offset,
            area=areas[0] if areas else None,
            with_text=with_text,
            min_score=min_score,
            objects=objects,
        )
        photos = [] if image is None else [self.image(image)]
        slots = [(request.image, photo.key, photo.encoded) for photo in photos]
        return wire.hits(await self._session.ask(request, slots))

    async def delete(self, collection: str, ids: Sequence[str] = (), *, all: bool = False) -> int:
        """Delete images by id, or a whole collection with ``all=True``; return the number deleted.

        Raises ValueError if both or neither are given.
        """
        names = wire.texts(ids) if len(ids) else []
        if bool(names) == all:
            found = "both ids and all=True" if all else "no ids"
            raise ValueError(
                f"delete got {found}: pass ids to delete these images, or all=True alone to "
                "delete the whole collection"
            )
        deleted = 0
        for start in range(0, max(1, len(names)), wire.CHUNK_IDS):
            batch = names[start : start + wire.CHUNK_IDS]
            request = wire.request(pb.DeleteRequest, collection=collection, ids=batch, all=all)
            deleted += (await self._session.ask(request)).deleted
        return deleted

    async def describe(self, collection: str = "") -> list[Collection]:
        """Return all collections, or the one with this name."""
        reply = await self._session.ask(wire.request(pb.DescribeRequest, collection=collection))
        return [wire.like(Collection, found) for found in reply.collections]

    async def list_items(
        self,
        collection: str,
        *,
        after: str = "",
        limit: int = 0,
        ids: Sequence[str] = (),
        vectors: bool = False,
    ) -> list[ListedItem]:
        """Return a page of items in order of id; the collection may be of another model.

        after: last id of the previous page. limit: page size; 0 means 100. No items: the end.
        ids: return the items with these ids instead, as many as there are.
        vectors: with the vector of each item; then at most 1,000 items.
        """
        request = wire.request(
            pb.ListItemsRequest,
            collection=collection,
            after_id=after,
            limit=limit,
            ids=wire.texts(ids) if len(ids) else [],
            inline=vectors,
        )
        return wire.listed_items(await self._session.ask(request))

    async def add_concept(self, name: str, examples: Example | Sequence[Example]) -> Concept:
        """Name what the examples show; "concept:NAME" is then a label or a text of any request.

        A concept of this name is replaced.

        >>> box = (130, 30, 330, 290)
        >>> client.add_concept("my cat", [samclip.Example("cat.jpg", box=box)]).examples
        1
        >>> client.image("cat.jpg").classify(["concept:my cat", "a cup"])[0].label
        'concept:my cat'
        """
        request, slots = wire.request(pb.PutConceptRequest, name=name), []
        for given in wire.examples(examples):
            photo, message = self.image(given.image), request.examples.add()
            message.CopyFrom(wire.example(given))
            slots.append((message.image, photo.key, photo.encoded))
        return wire.like(Concept, (await self._session.ask(request, slots)).concept)

    async def delete_concept(self, name: str) -> None:
        """Delete a concept. Raises NotFound."""
        await self._session.ask(wire.request(pb.DeleteConceptRequest, name=name))

    async def concepts(self) -> list[Concept]:
        """Return all concepts, in order of name."""
        reply = await self._session.ask(pb.ListConceptsRequest())
        return [wire.like(Concept, found) for found in reply.concepts]


class Client(Connection[Photo, Photos], AbstractContextManager["Client"]):
    """A client whose calls block; several threads may share it.

    >>> with samclip.Client("127.0.0.1:9000", timeout=30) as client:
    ...     client.image("cat.jpg").classify(["a cat", "a dog"])[0].label
    'a cat'

    api_key: sent with every call, for services that require one.
    tls: True for the system's CAs, or ``samclip.credentials(…)`` for a private CA or mTLS.
    timeout: deadline of each request, in seconds.
    bulk: send requests with bulk priority, behind interactive ones.
    model: name of the model that answers, of those in ``models``; see ``using``.
    """

    _library = grpc
    _photo = Photo
    _photos = Photos

    def __exit__(self, *_: object) -> None:
        self.close()

    close = blocking(AsyncClient.close)
    models = blocking(AsyncClient.models)
    heads = blocking(AsyncClient.heads)
    embed_text = blocking(AsyncClient.embed_text)
    index = blocking(AsyncClient.index)
    search = blocking(AsyncClient.search)
    delete = blocking(AsyncClient.delete)
    describe = blocking(AsyncClient.describe)
    list_items = blocking(AsyncClient.list_items)
    add_concept = blocking(AsyncClient.add_concept)
    delete_concept = blocking(AsyncClient.delete_concept)
    concepts = blocking(AsyncClient.concepts)
