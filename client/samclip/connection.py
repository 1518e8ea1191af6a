"""A connection to a running service: what both clients have, and do without waiting for it."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Generic, Self, TypeVar

import grpc

from samclip import wire
from samclip.address import DEFAULT, grpc_address
from samclip.images import ImageSource, Source
from samclip.many_photos import AT_ONCE, Images, _Photos, reason
from samclip.photo import AsyncPhoto, Photo
from samclip.thumbnails import with_thumbnail
from samclip.transport import Session
from samclip.types import Model
from samclip.v1 import samclip_pb2 as pb

AnyPhoto = TypeVar("AnyPhoto", Photo, AsyncPhoto)
AnyPhotos = TypeVar("AnyPhotos", bound=_Photos[Any])


class Connection(Generic[AnyPhoto, AnyPhotos]):
    """A connection to one address, closed by ``close`` or at the end of a ``with`` block.

    address: HOST:PORT of gRPC, or http(s)://HOST:PORT of the web site, which is asked for it.
    """

    _library: ModuleType
    _photo: type[AnyPhoto]
    _photos: type[AnyPhotos]

    def __init__(
        self,
        address: str = DEFAULT,
        *,
        api_key: str | None = None,
        tls: bool | grpc.ChannelCredentials = False,
        timeout: float = 60.0,
        bulk: bool = False,
        model: str = "",
    ) -> None:
        self.address, tls_by_scheme = grpc_address(address)
        tls = tls or tls_by_scheme
        self._session = Session(self._library, self.address, api_key, tls, timeout, bulk, model)

    def __repr__(self) -> str:
        named = f", model={self._session.named!r}" if self._session.named else ""
        model = f", {self.model.name} {self.model.digest[:12]}" if self.model else ""
        return f"{type(self).__name__}({self.address!r}{named}{model})"

    def using(self, model: str) -> Self:
        """Return a client of the same connection whose requests name another model; "": none.

        Requests that name no model are answered by the service's default, and those about a
        collection by the collection's own. The connection is closed with this client, not with the
        one returned.

        >>> client.using("edge").image(photo).classify(["a cat", "a dog"])[0].label
        'a cat'
        """
        made = copy.copy(self)
        made._session = self._session.using(model)
        return made

    @property
    def model(self) -> Model | None:
        """The checkpoint of the latest reply; None before the first."""
        return self._session.model

    def image(self, source: ImageSource | AnyPhoto) -> AnyPhoto:
        """Return a photograph from a path, a URL, a file's bytes, a Pillow image or an array.

        A URL is http or https, and this process downloads it, not the service; in ``async`` code,
        ``images`` does so without blocking the event loop. An array is uint8 H×W (grey) or H×W×3
        (RGB). The photograph is hashed locally, and uploaded only when the service does not have
        it cached. A photograph of another client is asked by this one. Raises OSError if the file
        cannot be read or downloaded, ValueError if it is empty or larger than 64 MiB.
        """
        if isinstance(source, Photo | AsyncPhoto):
            return source.asked(self._session)
        return self._photo(self._session, source)

    def images(
        self, images: Images, *, at_once: int = AT_ONCE, progress: bool = False
    ) -> AnyPhotos:
        """Return photographs; a question is asked about several of them at once.

        images: a folder, a glob, a path, a URL or any other source of ``image``, or several of
        them. at_once: photographs in flight. progress: a bar on stderr, in a terminal or notebook.
        Raises FileNotFoundError if a lone path does not exist, ValueError if a folder is empty.
        """
        return self._photos(self.image, images, at_once, progress)

    def by_key(self, key: str) -> AnyPhoto:
        """Return a photograph by its key; requests raise KeyUnknown if it is not cached."""
        return self._photo(self._session, key=key)

    def _items(
        self,
        sources: Iterable[Source],
        metadata: Mapping[str, Mapping[str, str]],
        errors: dict[str, str],
        thumbnails: bool,
    ) -> Iterator[pb.IndexItem]:
        """Yield an item per image; record images that cannot be read or named in ``errors``."""
        for name, id, problem, image in sources:
            try:
                if problem:
                    raise ValueError(problem)
                photo = self.image(name if image is None else image)
                pairs = metadata.get(id, {})
                if thumbnails and photo.encoded:
                    pairs = with_thumbnail(pairs, photo.encoded)
                item = wire.index_item(id, photo.key, photo.encoded, pairs)
            except (OSError, ValueError) as error:
                errors[id] = reason(name, error)
            else:
                yield item
