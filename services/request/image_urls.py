"""Images by URL: fetched from the hosts that the operator allows, within the limits of uploads.

A caller chooses the URL, and a host's name may have any address. So a URL is compared with the list
of allowed origins as it is written, and a name is resolved once: the connection goes to the address
that was checked, while ``Host`` and TLS keep the name.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple, Self
from urllib.parse import urljoin

import httpcore
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import ImageTooLarge, InvalidImage, RequestTooSlow
from services.observability import metrics
from services.request.arrival import MAX_BODIES, Arrivals, Transfer
from services.request.context import RequestContext
from services.settings import Settings

MAX_FETCHES = 64
"""Images that a replica fetches, or holds until they are embedded, at once."""
MAX_REDIRECTS = 5
MAX_URL = 8192  # characters: signed URLs of object stores have thousands
MAX_PIECES = 65_536
"""Pieces of a body: each costs time on the event loop, however small it is."""
CONNECT_S = 5.0
KEPT_S = 5.0  # for a connection that waits for the next image of its host
RESOLVERS = 4  # threads: a slow name server must not take those of other work
HEADERS = (
    *(("user-agent", "samclip"), ("accept", "image/*")),
    ("accept-encoding", "identity"),  # a compressed file could be a thousand times as large
)
UNANSWERED = (
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    ssl.SSLError,  # after the handshake: an alert, or a record that is none
)
REDIRECTS = (301, 302, 303, 307, 308)
DEFAULT_PORTS = {"http": 80, "https": 443}
URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<target>[/?][!$-;=?-\[\]-~]*)?(?:#[!-~]*)?",
    re.IGNORECASE | re.ASCII,
)
"""Printable ASCII without spaces, quotes, backslashes, ``<`` and ``>``. The host has no user, no
brackets and no ``%``."""
ROUTABLE = ip_network("2000::/3")
"""IPv6 outside it is local, multicast or an IPv4 address in other words, as of NAT64."""
NOT_PUBLIC = (
    ip_network("168.63.129.16/32"),  # of Azure's hosts, for their own virtual machines
    ip_network("192.88.99.0/24"),  # relays of 6to4
    ip_network("2002::/16"),  # 6to4: an IPv4 address in other words
    ip_network("3fff::/20"),  # documentation, which older versions of Python do not know
)
"""Addresses that ``is_global`` accepts, but that belong to no host of the internet."""

Resolve = Callable[[str, int], Iterable[str]]


def is_public(address: str) -> bool:
    """Return whether a numeric address may belong to a host of the internet."""
    try:
        ip: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    if ip.version == 6 and (ip not in ROUTABLE or getattr(ip, "scope_id", None)):
        return False
    inside = any(ip in network for network in NOT_PUBLIC if network.version == ip.version)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or inside)


def resolve(host: str, port: int) -> list[str]:
    """Return the numeric addresses of a host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


class Place(NamedTuple):
    """A URL in parts, as they are compared, connected to and sent; nothing parses it again."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Read a URL. Raises InvalidImage without it: logs have the message, a URL has secrets."""
        parts = URL.fullmatch(url) if len(url) <= MAX_URL else None
        if parts is None or (port := int(parts["port"] or 0)) >= 2**16:
            raise InvalidImage(
                "the image's url is not one: expected http(s)://HOST/PATH of at most "
                f"{MAX_URL:,} characters, with all but printable ASCII percent-encoded, and "
                "without a user or password"
            )
        scheme, target = parts["scheme"].lower(), parts["target"] or "/"
        target = target if target.startswith("/") else f"/{target}"
        return cls(scheme, parts["host"].lower(), port or DEFAULT_PORTS[scheme], target)

    @property
    def origin(self) -> str:
        """The origin in the way that ``image_origins`` states it."""
        usual = self.port == DEFAULT_PORTS[self.scheme]
        return f"{self.scheme}://{self.host}" + ("" if usual else f":{self.port}")

    def redirected(self, location: bytes) -> Self:
        """Return the place that a redirect names. Raises InvalidImage."""
        try:
            return self.of(urljoin(self.origin + self.target, location.decode("ascii")))
        except ValueError as error:  # not ASCII; brackets that enclose no address
            raise InvalidImage("the image's host redirects to no URL: give another url") from error


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to hosts of the internet alone; ``resolve`` is called once per connection."""

    def __init__(
        self, resolve: Resolve = resolve, dial: httpcore.AsyncNetworkBackend | None = None
    ):
        self._resolve, self._dial = resolve, dial or httpcore.AnyIOBackend()
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "resolve")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host whose addresses are all public. Raises InvalidImage and httpcore's."""
        loop = asyncio.get_running_loop()
        try:
            found = loop.run_in_executor(self._resolvers, self._resolve, host, port)
            addresses = list(dict.fromkeys(await found))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"no address is known for {host}") from error
        if not addresses or not all(map(is_public, addresses)):
            raise InvalidImage(
                f"the image's host {host} has an address that is not public: the service fetches "
                "images from the internet alone, so send the file itself"
            )
        return await self._first(addresses, port, timeout)

    async def _first(
        self, addresses: Sequence[str], port: int, timeout: float | None
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers. Raises httpcore's errors."""
        for number, address in enumerate(addresses, 1):
            try:
                return await self._dial.connect_tcp(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise AssertionError("no addresses")

    def close(self) -> None:
        """Stop the threads."""
        self._resolvers.shutdown(wait=False)


class ImageUrls:
    """Fetches the images of requests that have a URL. For one event loop."""

    def __init__(self, settings: Settings, network: PublicNetwork | None = None):
        self._origins = {Place.of(origin).origin for origin in settings.image_origins or ()}
        self.most_bytes = settings.max_image_bytes
        bodies = MAX_BODIES * settings.max_request_bytes
        self._arrivals = Arrivals(
            bodies, MAX_FETCHES, what="images by URL", most_of_key=MAX_FETCHES // 2
        )
        self._network = network or PublicNetwork()
        # Here, and not at the first image: reading certificates would block the event loop.
        self._tls = httpcore.default_ssl_context() if self._origins else None

    @cached_property
    def _pool(self) -> httpcore.AsyncConnectionPool:
        """The connections, which belong to the event loop."""
        return httpcore.AsyncConnectionPool(
            ssl_context=self._tls,
            max_connections=MAX_FETCHES,
            keepalive_expiry=KEPT_S,
            network_backend=self._network,
        )

    @asynccontextmanager
    async def opened(self, context: RequestContext, image: pb.Image) -> AsyncIterator[pb.Image]:
        """Yield an image with its file or key: one with a URL is fetched, and held until the end.

        Raises InvalidImage, ImageTooLarge and Overloaded.
        """
        if image.WhichOneof("source") != "url":
            yield image
            return
        place = self._allowed(Place.of(image.url))
        with self._arrivals.place(context.caller.name) as hold:
            with metrics.stage("fetch"):
                encoded = await self._fetch(place, hold)
            yield pb.Image(encoded=encoded)

    async def close(self) -> None:
        """Close the connections."""
        if "_pool" in vars(self):
            await self._pool.aclose()
        self._network.close()

    def _allowed(self, place: Place) -> Place:
        """Return the place. Raises InvalidImage unless its origin is in the list."""
        if place.origin not in self._origins:
            raise InvalidImage(
                f"images of {place.origin[:80]} are not fetched: send the file itself, or ask the "
                "operator to add this origin to image_origins"
            )
        return place

    async def _fetch(self, place: Place, hold: Callable[[int], None]) -> bytes:
        """Return the file at a place, or where its redirects lead. Raises as ``opened`` does."""
        transfer = Transfer(self._arrivals.pace)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                async with AsyncExitStack() as stack:
                    async with transfer.wait("image's host"):
                        reply = await stack.enter_async_context(self._asked(place))
                    if reply.status not in REDIRECTS:
                        return await self._read(reply, transfer, hold)
                place = self._allowed(place.redirected(_header(reply, b"location")))
        except RequestTooSlow as error:
            raise InvalidImage(
                f"the image's host {place.host} is too slow: {transfer.bytes:,} bytes arrived in "
                f"{transfer.waited_s:.0f} s, the limits are {transfer.pace}: send the file itself"
            ) from error
        except UNANSWERED as error:
            raise InvalidImage(
                f"the image's host {place.host} does not answer ({type(error).__name__}): check "
                "the url, or send the file itself"
            ) from error
        raise InvalidImage(f"the image's url leads to more than {MAX_REDIRECTS} redirects")

    def _asked(self, place: Place) -> AbstractAsyncContextManager[httpcore.Response]:
        """Ask for the file at a place, without credentials, cookies and compression."""
        url = httpcore.URL(
            scheme=place.scheme, host=place.host, port=place.port, target=place.target
        )
        limits = {"timeout": {"connect": CONNECT_S}}
        return self._pool.stream("GET", url, headers=HEADERS, extensions=limits)

    async def _read(
        self, reply: httpcore.Response, transfer: Transfer, hold: Callable[[int], None]
    ) -> bytes:
        """Return the body of a reply. Raises InvalidImage, ImageTooLarge and Overloaded."""
        if reply.status != 200:
            raise InvalidImage(
                f"the image's host answers {reply.status}: give a url that answers 200 without "
                "credentials"
            )
        if _header(reply, b"content-encoding").lower() not in (b"", b"identity"):
            raise InvalidImage("the image's host compresses the file: send the file itself")
        self._check_size(int(_header(reply, b"content-length") or 0))  # httpcore has checked it
        pieces, arriving = list[bytes](), aiter(reply.aiter_stream())
        while True:
            async with transfer.wait("image's host"):
                piece = await anext(arriving, b"")
            if not piece:
                return b"".join(pieces)
            transfer.bytes += len(piece)
            self._check_size(transfer.bytes)
            hold(len(piece))
            pieces.append(piece)
            if len(pieces) > MAX_PIECES:
                raise InvalidImage("the image's host sends tiny pieces: send the file itself")

    def _check_size(self, size: int) -> None:
        if size > self.most_bytes:
            raise ImageTooLarge(
                f"the image at the url has more than {self.most_bytes:,} bytes: give a smaller one"
            )


def _header(reply: httpcore.Response, name: bytes) -> bytes:
    """Return the value of a header, whose name is in lower case; b"" if there is none."""
    return next((value for key, value in reply.headers if key.lower() == name), b"")
