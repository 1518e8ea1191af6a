"""Images by URL: what is refused and why, and what a hostile host can do."""

import asyncio
import os
import random
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InvalidImage,
    Overloaded,
)
from services.request import image_urls
from services.request.arrival import Arrivals, Pace
from services.request.context import Caller, Priority, RequestContext, time_limit
from services.request.image_urls import ImageUrls, Place, is_public, resolve
from services.settings import Settings, SettingsError
from tests import tls
from tests.far_hosts import IMAGES, PUBLIC, Answer, FarHosts, far_hosts, file, redirect
from tests.in_process import ANYBODY, responsive

URL = f"http://{IMAGES}/cat.jpg"
MOST = 2**20
ORIGINS = f"http://{IMAGES},https://{IMAGES}:8443,http://private.example"


def settings_of(origins: str | None = ORIGINS) -> Settings:
    return Settings(image_origins=origins, max_image_bytes=MOST)  # type: ignore[arg-type]


@asynccontextmanager
async def fetching(
    answer: Answer, origins: str | None = ORIGINS, **names: list[str]
) -> AsyncIterator[tuple[FarHosts, ImageUrls]]:
    """Yield hosts that give this answer, and the fetcher; ``names`` of .example have addresses."""
    async with far_hosts(answer) as hosts:
        network = hosts.network({f"{name}.example": found for name, found in names.items()})
        urls = ImageUrls(settings_of(origins), network)
        try:
            yield hosts, urls
        finally:
            await urls.close()


async def fetched(urls: ImageUrls, url: str = URL, context: RequestContext = ANYBODY) -> bytes:
    async with urls.opened(context, pb.Image(url=url)) as image:
        return image.encoded


async def refusal(urls: ImageUrls, url: str = URL) -> str:
    with pytest.raises(InvalidImage) as caught:
        await fetched(urls, url)
    return str(caught.value)


async def test_a_file_is_fetched_from_the_address_that_was_checked() -> None:
    async with fetching(file(b"the file")) as (hosts, urls):
        assert await fetched(urls, f"HTTP://{IMAGES.upper()}:80/a%20b?c=d&e#part") == b"the file"
    assert hosts.dial.dialled == [(PUBLIC, 80)]
    (head,) = hosts.heads
    first, *lines = head.decode().rstrip().split("\r\n")
    assert first == "GET /a%20b?c=d&e HTTP/1.1"
    assert dict(line.lower().split(": ") for line in lines) == {
        "host": IMAGES,
        "user-agent": "samclip",
        "accept": "image/*",
        "accept-encoding": "identity",
    }


async def test_files_and_keys_are_passed_on() -> None:
    urls = ImageUrls(settings_of(None))
    for image in (pb.Image(encoded=b"x"), pb.Image(key="k"), pb.Image()):
        async with urls.opened(ANYBODY, image) as opened:
            assert opened is image
    await urls.close()


NOT_ALLOWED, NO_URL, NOT_PUBLIC = "are not fetched", "is not one", "is not public"
HOSTILE = {
    "": NO_URL,
    "cat.jpg": NO_URL,
    "//images.example/cat.jpg": NO_URL,
    "file:///etc/passwd": NO_URL,
    "ftp://images.example/cat.jpg": NO_URL,
    "gopher://images.example/": NO_URL,
    "data:image/png;base64,AAAA": NO_URL,
    "http+unix://images.example/": NO_URL,
    "http:images.example/": NO_URL,
    "http:///cat.jpg": NO_URL,
    "http://user:password@images.example/": NO_URL,
    "http://images.example@evil.example/": NO_URL,
    "http://images.example:80@evil.example/": NO_URL,
    "http://images.example#@evil.example/": "",  # the host is ours, and the rest a fragment
    "http://evil.example#@images.example/": NOT_ALLOWED,
    "http://evil.example?@images.example/": NOT_ALLOWED,
    "http://evil.example/@images.example/": NOT_ALLOWED,
    "http://evil.example\\@images.example/": NO_URL,
    "http://images.example\\.evil.example/": NO_URL,
    "http://images.example%00.evil.example/": NO_URL,
    "http://images.example%2eevil.example/": NO_URL,
    "http://images.example/\r\nX-Injected: 1": NO_URL,
    "http://images.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n": NO_URL,
    "http://images.example/cat.jpg\n": NO_URL,
    " http://images.example/cat.jpg": NO_URL,
    "http://images.exa\tmple/": NO_URL,
    "http://images.example./cat.jpg": NOT_ALLOWED,
    "http://images.example.evil.example/": NOT_ALLOWED,
    "http://evilimages.example/": NOT_ALLOWED,
    "http://sub.images.example/": NOT_ALLOWED,
    "http://imag\u0435s.example/": NO_URL,  # a Cyrillic letter
    "http://images\u3002example/": NO_URL,  # an ideographic full stop
    "http://images\uff0eexample/": NO_URL,  # a fullwidth one
    "http://\u24d8mages.example/": NO_URL,  # a circled letter, which IDNA maps to ours
    "http://xn--imags-1nf.example/": NOT_ALLOWED,
    "http://images.example:8080/": NOT_ALLOWED,
    "http://images.example:0/": NO_URL,
    "http://images.example:65616/": NO_URL,  # 80, if cut to 16 bits
    "http://images.example:080/": NO_URL,
    "http://images.example:\uff18\uff10/": NO_URL,
    "http://images.example: 80/": NO_URL,
    "https://images.example/": NOT_ALLOWED,  # only http, and https at 8443
    "http://images.example:8443/": NOT_ALLOWED,
    "http://127.0.0.1/": NOT_ALLOWED,
    "http://127.1/": NOT_ALLOWED,
    "http://2130706433/": NOT_ALLOWED,
    "http://0x7f000001/": NOT_ALLOWED,
    "http://0177.0.0.1/": NOT_ALLOWED,
    "http://0/": NOT_ALLOWED,
    "http://localhost/": NOT_ALLOWED,
    "http://169.254.169.254/latest/meta-data/": NOT_ALLOWED,
    "http://metadata.google.internal/": NOT_ALLOWED,
    "http://[::1]/": NO_URL,
    "http://[::ffff:127.0.0.1]/": NO_URL,
    "http://[fe80::1%25eth0]/": NO_URL,
    "http://private.example/": NOT_PUBLIC,
    "http://images.example/" + "a" * 8192: NO_URL,
}


async def test_no_hostile_url_leads_to_a_connection() -> None:
    async with fetching(file(b"secret"), private=["10.0.0.1"]) as (hosts, urls):
        for url, reason in HOSTILE.items():
            if reason:
                said = await refusal(urls, url)
                assert reason in said, url
                assert "user:password" not in said
        assert hosts.dial.dialled == hosts.heads == []
        assert hosts.resolved == ["private.example"]
        (ours,) = (url for url, reason in HOSTILE.items() if not reason)
        await fetched(urls, ours)
    assert b"evil" not in hosts.heads[0]


ELSEWHERE = [
    url for url, reason in HOSTILE.items() if reason and url.isprintable() and "://" in url
]


@pytest.mark.parametrize("url", ELSEWHERE)
async def test_no_redirect_leads_to_a_hostile_url(url: str) -> None:
    """Whatever it is taken for, only our host is asked: ``http:///cat.jpg`` is a path there."""
    location = url.encode().decode("latin-1")
    async with fetching(redirect(location), private=["10.0.0.1"]) as (hosts, urls):
        await refusal(urls)
        assert {*hosts.resolved} <= {IMAGES, "private.example"}
        assert {*hosts.dial.dialled} == {(PUBLIC, 80)}
        assert all(f"Host: {IMAGES}\r\n".encode() in head for head in hosts.heads)


PIECES = r"""http:// https:// images.example evil.example @ : / \ ? # . %2f %40 %00 [ ] [::1] 80
8443 user 127.0.0.1 % // .. ; & = | ^ ` { } < > " ' * ~ - _"""
ODD = "\u3002", "\uff0e", "\u24d8", "\u200d", "\ufeff", "\t", "\r\n", " "


def test_no_parser_reads_another_host_in_a_url_that_is_accepted() -> None:
    chosen, accepted = random.Random(0), 0
    for _ in range(40_000):
        parts = chosen.choices([*PIECES.split(), *ODD], k=chosen.randint(0, 5))
        url = "".join([f"http://{IMAGES}", *parts])
        try:
            place = Place.of(url)
        except InvalidImage:
            continue
        if place.origin == f"http://{IMAGES}":
            accepted += 1
            assert urlsplit(url).hostname == httpx.URL(url).host == IMAGES, url
            assert re.fullmatch("/[!-~]*", place.target), url
    assert accepted > 1000


LOCAL = """0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254
168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1
192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:93.184.216.34
::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::5db8:d822 64:ff9b:1::7f00:1 100::1 2001::1
2001:2::1 2001:10::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 3fff::1 5f00::1 fc00::1
fd00:ec2::254 fe80::1 fe80::1%eth0 fe80::1%1 2600::1%eth0 fec0::1 ff02::1 ff0e::1 127.1
2130706433 0x7f.1 0177.0.0.1 localhost"""


@pytest.mark.parametrize("address", LOCAL.split())
async def test_a_name_with_an_address_that_is_not_public_is_not_connected_to(address: str) -> None:
    assert not is_public(address)
    for found in ([address], [PUBLIC, address]):
        async with fetching(file(b"secret"), images=found) as (hosts, urls):
            assert NOT_PUBLIC in await refusal(urls)
            assert hosts.dial.dialled == []


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2600::1", "2a00:1450:4001::1"])
def test_hosts_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_numbers_in_other_forms_resolve_to_addresses_that_are_refused() -> None:
    for host in ("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost"):
        assert not any(map(is_public, resolve(host, 80)))


async def test_a_name_is_resolved_once_per_connection() -> None:
    """A second look-up could return another address than the one that was checked."""
    answers = [[PUBLIC], ["127.0.0.1"]]
    async with fetching(file(b"x", "Connection: close")) as (hosts, urls):
        urls._network._resolve = lambda host, port: answers.pop(0)
        assert await fetched(urls) == b"x"
        assert hosts.dial.dialled == [(PUBLIC, 80)]
        assert NOT_PUBLIC in await refusal(urls)
        assert hosts.dial.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize("name", [IMAGES, "evil.example"])
async def test_the_certificate_is_that_of_the_name_not_of_the_address(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, served = tls.certificate(tmp_path, name), list[str | None]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made)
    context.sni_callback = lambda _, asked, __: served.append(asked)
    trusted = ssl.create_default_context(cafile=str(made))
    monkeypatch.setattr(image_urls.httpcore, "default_ssl_context", lambda: trusted)
    async with far_hosts(file(b"the file"), context) as hosts:
        urls = ImageUrls(settings_of(), hosts.network())
        if name == IMAGES:
            assert await fetched(urls, f"https://{IMAGES}:8443/") == b"the file"
            assert f"Host: {IMAGES}:8443\r\n".encode() in hosts.heads[0]
        else:
            assert "does not answer (ConnectError)" in await refusal(
                urls, f"https://{IMAGES}:8443/"
            )
            assert hosts.heads == []
        await urls.close()
    assert (served, hosts.dial.dialled) == ([IMAGES], [(PUBLIC, 8443)])


async def test_a_record_that_is_none_after_the_handshake_is_an_error_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(head: bytes, writer: asyncio.StreamWriter) -> None:
        os.write(writer.get_extra_info("socket").fileno(), b"a text instead of a record")

    made = tls.certificate(tmp_path, IMAGES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made)
    trusted = ssl.create_default_context(cafile=str(made))
    monkeypatch.setattr(image_urls.httpcore, "default_ssl_context", lambda: trusted)
    async with far_hosts(broken, context) as hosts:
        urls = ImageUrls(settings_of(), hosts.network())
        assert "does not answer (SSLError)" in await refusal(urls, f"https://{IMAGES}:8443/")
        await urls.close()


async def test_a_name_without_an_address_is_refused() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    async with fetching(file(b"x"), images=[]) as (_, urls):
        assert NOT_PUBLIC in await refusal(urls)
        urls._network._resolve = unknown
        assert "does not answer (ConnectError)" in await refusal(urls)


async def test_the_next_address_is_tried_if_one_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fetching(file(b"x"), images=["1.1.1.1", PUBLIC]) as (hosts, urls):
        connect = hosts.dial.connect_tcp

        async def connect_tcp(host: str, *rest: object) -> object:
            if host == "1.1.1.1":
                raise image_urls.httpcore.ConnectError
            return await connect(host, *rest)

        monkeypatch.setattr(hosts.dial, "connect_tcp", connect_tcp)
        assert await fetched(urls) == b"x"


async def test_redirects_within_the_list_are_followed_without_their_bodies() -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET /cat.jpg "):
            lines = "HTTP/1.1 301 Moved", "Location: ../b/c?d", "Set-Cookie: a=b", "", ""
            writer.write("\r\n".join(lines).encode() + b"x" * 100)  # of no end
            await writer.drain()
            return
        await file(b"the file")(head, writer)

    async with fetching(answer) as (hosts, urls):
        assert await fetched(urls) == b"the file"
    assert hosts.heads[1].startswith(b"GET /b/c?d HTTP/1.1\r\n")
    assert b"ookie" not in hosts.heads[1]


async def test_redirects_end() -> None:
    async with fetching(redirect(URL)) as (hosts, urls):
        assert "more than 5 redirects" in await refusal(urls)
        assert len(hosts.heads) == 6
    async with fetching(file(b"", status="302 Found")) as (hosts, urls):
        await refusal(urls)  # without an address, it is the same one


@pytest.mark.parametrize(
    "status", ["204 No", "206 Partial", "304 Not", "401 No", "404 No", "500 E"]
)
async def test_only_200_has_the_file(status: str) -> None:
    async with fetching(file(b"", status=status)) as (_, urls):
        assert f"answers {status[:3]}" in await refusal(urls)


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, gzip"])
async def test_a_compressed_file_is_refused_before_it_is_unpacked(coding: str) -> None:
    async with fetching(file(b"bomb", f"Content-Encoding: {coding}")) as (_, urls):
        assert "compresses the file" in await refusal(urls)


async def test_too_many_bytes_end_the_transfer() -> None:
    sent = 0

    async def endless(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65_536))
            await writer.drain()
            sent += 65_536

    async with fetching(endless) as (hosts, urls):
        with pytest.raises(ImageTooLarge, match="more than 1,048,576 bytes"):
            await fetched(urls)
        await hosts.closed.wait()
    assert sent < 16 * MOST  # buffers of the two sockets
    async with fetching(file(bytes(MOST + 1))) as (_, urls):
        with pytest.raises(ImageTooLarge):
            await fetched(urls)
    async with fetching(file(bytes(MOST))) as (_, urls):
        assert len(await fetched(urls)) == MOST


async def test_a_length_is_refused_before_the_bytes() -> None:
    async def promise(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        await asyncio.Event().wait()

    async with fetching(promise) as (_, urls):
        with pytest.raises(ImageTooLarge):
            await fetched(urls)


def chunks(*sizes: int) -> Answer:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for size in sizes:
            writer.write(b"%x\r\n%s\r\n" % (size, bytes(size)))
        writer.write(b"0\r\n\r\n")

    return answer


async def test_a_file_in_tiny_pieces_does_not_keep_the_event_loop() -> None:
    async with fetching(chunks(100, 1, 10_000)) as (_, urls):
        assert len(await fetched(urls)) == 10_101
    async with fetching(chunks(*[1] * (image_urls.MAX_PIECES + 1))) as (_, urls):
        with responsive():
            assert "tiny pieces" in await refusal(urls)


@pytest.mark.parametrize(
    "sent", [b"", b"HTT", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"], ids=len
)
async def test_a_host_that_stops_is_left_at_the_pace_or_the_deadline(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drip(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        await asyncio.Event().wait()

    hurried = RequestContext(priority=Priority.read({}, 0.2))
    async with fetching(drip) as (_, urls):
        with pytest.raises(DeadlineExceeded):
            async with time_limit(hurried):
                await fetched(urls, context=hurried)
        assert urls._pool.connections == []
        urls._arrivals = Arrivals(pace=Pace(head_start_s=0.2))
        assert "is too slow" in await refusal(urls)


async def test_a_slow_drip_is_ended() -> None:
    async def drip(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with fetching(drip) as (_, urls):
        urls._arrivals = Arrivals(pace=Pace(head_start_s=0.2))
        assert "is too slow" in await refusal(urls)
        assert urls._pool.connections == []


async def test_if_the_caller_leaves_the_connection_is_closed_and_the_place_is_free() -> None:
    asked = asyncio.Event()

    async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with fetching(silent) as (hosts, urls):
        for _ in range(3):
            asked.clear()
            hosts.closed.clear()
            task = asyncio.create_task(fetched(urls))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await hosts.closed.wait()
        assert (urls._arrivals.number, urls._pool.connections) == (0, [])


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + bytes(200_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:60]),
)
async def test_other_protocols_and_broken_answers_are_refused(sent: bytes) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async with fetching(answer) as (_, urls):
        assert "host" in await refusal(urls)
        assert urls._pool.connections == []


async def test_images_at_once_are_limited_and_a_key_has_half_of_the_bytes() -> None:
    async with fetching(file(bytes(1000))) as (_, urls):
        urls._arrivals = Arrivals(3000, 2)
        async with (
            urls.opened(ANYBODY, pb.Image(url=URL)),
            urls.opened(ANYBODY, pb.Image(url=URL)),
        ):
            with pytest.raises(Overloaded, match="2 request bodies"):
                await fetched(urls)
        ours = RequestContext(caller=Caller("ours", "", frozenset({"read"})))
        async with urls.opened(ours, pb.Image(url=URL)):
            with pytest.raises(Overloaded, match="with one API key"):
                await fetched(urls, context=ours)
            assert len(await fetched(urls)) == 1000
        assert urls._arrivals.bytes == 0


async def test_certificates_are_read_at_the_start_and_only_if_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = list[ssl.SSLContext]()

    def read() -> ssl.SSLContext:
        made.append(ssl.create_default_context())
        return made[-1]

    monkeypatch.setattr(image_urls.httpcore, "default_ssl_context", read)
    async with fetching(file(b"x")) as (_, urls):
        assert len(made) == 1
        assert await fetched(urls) == b"x"
    async with fetching(file(b"x"), origins=None):
        assert len(made) == 1


async def test_a_failure_is_not_remembered() -> None:
    async with fetching(file(b"", status="503 Busy")) as (hosts, urls):
        await refusal(urls)
        hosts.answer = file(b"x")
        assert await fetched(urls) == b"x"


@pytest.mark.parametrize(
    "origin",
    [
        IMAGES,
        f"ftp://{IMAGES}",
        f"http://{IMAGES}/",
        f"http://{IMAGES}/path",
        f"http://{IMAGES}.",
        f"http://*.{IMAGES}",
        f"http://user@{IMAGES}",
        f"http://{IMAGES}:65536",
        f"http://{IMAGES}:99999",
        "http://[::1]",
        "http://m\xfcnchen.example",
        f"http://{IMAGES.upper()}",
        "*",
    ],
)
def test_an_origin_that_would_never_match_is_no_setting(origin: str) -> None:
    with pytest.raises(ValidationError):
        settings_of(origin)


def test_an_impossible_port_is_named() -> None:
    with pytest.raises(SettingsError, match=r"http://x:99999.*expected a port from 1 to 65535"):
        Settings.load(image_origins=f"http://{IMAGES},http://x:99999")
    assert settings_of("http://x:65535").image_origins == ("http://x:65535",)


async def test_without_the_setting_all_are_refused_with_a_remedy() -> None:
    async with fetching(file(b"x"), origins=None) as (hosts, urls):
        said = await refusal(urls)
        assert "image_origins" in said
        assert "send the file itself" in said
        assert hosts.resolved == []
