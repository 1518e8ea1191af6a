"""The client of a running service: ``Client``, whose calls block, and ``AsyncClient``, its twin.

All calls raise ``samclip.ServiceError``.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Generic, Self, TypeVar

import grpc
import grpc.aio
import numpy as np

from samclip import wire
from samclip.images import ImageSource
from samclip.keywords import names_its_keywords
from samclip.photo import AsyncPhoto, Photo, blocking
from samclip.session import Session
from samclip.types import Collection, Hit, Indexed, ListedItem, Model
from samclip.v1 import samclip_pb2 as pb

AnyPhoto = TypeVar("AnyPhoto", Photo, AsyncPhoto)
_NO_METADATA: Mapping[str, Mapping[str, str]] = {}


@names_its_keywords
class _Client(Generic[AnyPhoto]):
    """A connection to one address, closed by ``close`` or at the end of a ``with`` block.

    api_key: sent with every call, where the service wants one.
    tls: True for the system's certificates, or ``samclip.credentials`` (a private CA, mTLS).
    timeout: seconds that one question may take.
    bulk: its questions let those of others pass.
    """

    _library: ModuleType
    _photo: type[AnyPhoto]

    def __init__(
        self,
        address: str = "127.0.0.1:9000",
        *,
        api_key: str | None = None,
        tls: bool | grpc.ChannelCredentials = False,
        timeout: float = 60.0,
        bulk: bool = False,
    ) -> None:
        self.address = address
        self._session = Session(self._library, address, api_key, tls, timeout, bulk)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    @property
    def model(self) -> Model | None:
        """The checkpoint that gave the latest answer; None before the first."""
        return self._session.model

    def image(self, source: ImageSource | AnyPhoto) -> AnyPhoto:
        """A photograph to ask about: a path, a file's bytes, a Pillow image or a uint8 array.

        It is hashed here, and sent once: at the first question, if the service does not hold it.
        """
        if isinstance(source, Photo | AsyncPhoto):
            return source
        return self._photo(self._session, source)

    def by_key(self, key: str) -> AnyPhoto:
        """A photograph that the service holds already; questions raise KeyUnknown if not."""
        return self._photo(self._session, key=key)

    def _items(
        self,
        images: Mapping[str, ImageSource | AnyPhoto],
        metadata: Mapping[str, Mapping[str, str]],
        errors: dict[str, str],
    ) -> Iterator[pb.IndexItem]:
        """The items of a collection; those that cannot be made are added to ``errors`` instead."""
        for name, image in images.items():
            try:
                photo = self.image(image)
                item = wire.index_item(name, photo.key, photo.encoded, metadata.get(name, {}))
            except (OSError, ValueError) as error:
                errors[name] = str(error)
            else:
                yield item


@names_its_keywords
class AsyncClient(_Client[AsyncPhoto]):
    """The client for ``async`` code: same methods as ``Client``, each to be awaited."""

    _library = grpc.aio
    _photo = AsyncPhoto

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._session.close()

    async def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 (T, D), rows of length 1, in the space of ``Photo.embed``."""
        reply = await self._session.ask(pb.EmbedTextRequest(texts=wire.texts(texts)))
        return wire.tensor_to_array(reply.tensor)

    async def index(
        self,
        collection: str,
        images: Mapping[str, ImageSource | AsyncPhoto],
        *,
        metadata: Mapping[str, Mapping[str, str]] = _NO_METADATA,
    ) -> Indexed:
        """Put images (id → image) into a collection, in as many requests as their sizes need.

        metadata: id → what a search shall give back with it.
        An image that cannot be read or used is in the errors, and the others are indexed.
        """
        errors: dict[str, str] = {}
        indexed = replaced = 0
        for chunk in wire.chunks(self._items(images, metadata, errors)):
            reply = await self._session.ask(pb.IndexRequest(collection=collection, items=chunk))
            indexed += reply.indexed
            replaced += reply.replaced
            errors.update({error.id: error.message for error in reply.errors})
        return Indexed(indexed, errors, replaced)

    async def search(
        self,
        collection: str,
        *,
        text: str | None = None,
        image: ImageSource | AsyncPhoto | None = None,
        id: str | None = None,
        top_k: int = 0,
        filter: Mapping[str, str] | None = None,
        offset: int = 0,
    ) -> list[Hit]:
        """The images of a collection that are most like a text, an image or one of their own.

        top_k: how many; 0 means 10.
        filter: only images whose metadata has all of these.
        offset: leaves out so many of the best; the next page starts at offset + top_k.
        """
        if sum(query is not None for query in (text, image, id)) != 1:
            raise ValueError("search takes exactly one of text=, image= and id=")
        request = pb.SearchRequest(
            collection=collection, text=text, id=id, top_k=top_k, filter=filter, offset=offset
        )
        slots = []
        if image is not None:
            photo = self.image(image)
            slots = [(request.image, photo.key, photo.encoded)]
        return wire.hits(await self._session.ask(request, slots))

    async def delete(self, collection: str, ids: Sequence[str] = (), *, all: bool = False) -> int:
        """Delete images by id, or with ``all=True`` a whole collection; return how many.

        Raises ValueError for neither and for both.
        """
        names = wire.texts(ids) if len(ids) else []
        if bool(names) == all:  # checked here too: to older services, no ids meant all
            found = "both ids and all=True" if all else "no ids"
            raise ValueError(
                f"delete got {found}: pass ids to delete these images, or all=True alone to "
                "delete the whole collection"
            )
        deleted = 0
        for start in range(0, max(1, len(names)), wire.CHUNK_IDS):
            some = names[start : start + wire.CHUNK_IDS]
            request = pb.DeleteRequest(collection=collection, ids=some, all=all)
            deleted += (await self._session.ask(request)).deleted
        return deleted

    async def describe(self, collection: str = "") -> list[Collection]:
        """The collections that there are, or the one of this name."""
        reply = await self._session.ask(pb.DescribeRequest(collection=collection))
        return wire.collections(reply)

    async def list_items(
        self, collection: str, *, after: str = "", limit: int = 0
    ) -> list[ListedItem]:
        """A page of what a collection holds, by id; it may be of another model than the service's.

        after: the last id of the page before. limit: how many; 0 means 100. No items: the end.
        """
        request = pb.ListItemsRequest(collection=collection, after_id=after, limit=limit)
        return wire.listed_items(await self._session.ask(request))


class Client(_Client[Photo]):
    """The client: its calls block, and may be made from several threads.

    api_key: sent with every call, where the service wants one.
    tls: True for the system's certificates, or ``samclip.credentials`` (a private CA, mTLS).
    timeout: seconds that one question may take.
    bulk: its questions let those of others pass.
    """

    _library = grpc
    _photo = Photo

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    close = blocking(AsyncClient.close)
    embed_text = blocking(AsyncClient.embed_text)
    index = blocking(AsyncClient.index)
    search = blocking(AsyncClient.search)
    delete = blocking(AsyncClient.delete)
    describe = blocking(AsyncClient.describe)
    list_items = blocking(AsyncClient.list_items)
