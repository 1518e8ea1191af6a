"""The tools for assistants, called by the SDK's own client over all of its transports."""

import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.image import image_key
from services.gateway.adapters.mcp.server import build, main
from tests.checkout import sources
from tests.fake_server import FakeService, fake_server
from tests.in_process import png
from tests.ports import free_port

PHOTO = png(200)
IMAGE = base64.b64encode(PHOTO).decode()
KEY = "a key"


@pytest.fixture
def service() -> Iterator[tuple[FakeService, str]]:
    with fake_server() as running:
        yield running


def keys(service: FakeService) -> set[str | None]:
    return {headers.get("authorization") for _, headers in service.calls}


@asynccontextmanager
async def inside(address: str) -> AsyncIterator[Client]:
    async with Client(build({"address": address}, KEY)) as client:
        yield client


@asynccontextmanager
async def over_stdio(address: str) -> AsyncIterator[Client]:
    arguments = ["-m", "services.gateway.adapters.mcp.server", "--server", address]
    environment = {"PYTHONPATH": sources(), "SAMCLIP_API_KEY": KEY}
    started = StdioServerParameters(command=sys.executable, args=arguments, env=environment)
    async with Client(started) as client:
        yield client


@asynccontextmanager
async def at_a_port(address: str) -> AsyncIterator[str]:
    """Run ``samclip mcp --http`` with a key of its operator, and yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "samclip.cli", "mcp", "--http", str(port)]
    environment = {"PYTHONPATH": sources(), "SAMCLIP_API_KEY": "the operator's"}
    with subprocess.Popen([*command, "--server", address], env=environment) as process:
        url = f"http://127.0.0.1:{port}/mcp"
        try:
            async with httpx.AsyncClient() as probe:
                while True:
                    try:
                        await probe.get(f"http://127.0.0.1:{port}/")
                        break
                    except httpx.ConnectError:
                        assert process.poll() is None
            yield url
        finally:
            process.terminate()


@asynccontextmanager
async def over_http(address: str) -> AsyncIterator[Client]:
    """Call ``samclip mcp --http`` with the caller's key."""
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        at_a_port(address) as url,
        create_mcp_http_client(headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def answer(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0])


@pytest.mark.parametrize("connected", [inside, over_stdio, over_http])
async def test_every_tool_over_every_transport(
    service: tuple[FakeService, str], connected: Any
) -> None:
    fake, address = service
    fake.collections["pets"] = {"a": pb.IndexItem(id="a", image=pb.Image(encoded=PHOTO))}
    async with connected(address) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {"classify", "segment", "find", "search", "describe", "models"}
        labels = ["a cat", "a longer label"]
        scores = await answer(client, "classify", image=IMAGE, labels=labels)
        assert {one["label"] for one in scores["scores"]} == set(labels)
        key = scores["image_key"]
        assert key == image_key(PHOTO)
        uri = f"data:image/png;base64,{IMAGE}"
        (by_box,) = (await answer(client, "segment", image=uri, box=[2, 3, 30, 20]))["objects"]
        assert by_box["box"] == [2, 3, 30, 20]
        (by_point,) = (await answer(client, "segment", image=key, points=[[10, 9]]))["objects"]
        assert by_point["box"][:2] == [0, 0]
        found = await answer(client, "find", image=key, texts=["a cat", "two things"])
        assert [one["label"] for one in found["objects"]] == ["a cat", *["two things"] * 2]
        hits = (await answer(client, "search", collection="pets", text="a cat"))["hits"]
        assert [hit["id"] for hit in hits] == ["a"]
        collections = (await answer(client, "describe"))["collections"]
        assert [one["name"] for one in collections] == ["pets"]
        models = (await answer(client, "models"))["models"]
        assert [one["name"] for one in models if one["without_masks"]] == ["clip"]
        json.dumps([scores, by_box, by_point, found, hits, collections])
    assert keys(fake) == {f"Bearer {KEY}"}
    assert fake.uploads == [key]


async def test_a_tool_names_the_model_that_it_is_given(service: tuple[FakeService, str]) -> None:
    fake, address = service
    fake.collections["pets"] = {}
    about_image = {
        "classify": {"labels": ["a cat"]},
        "segment": {"points": [[10, 9]]},
        "find": {"texts": ["a cat"]},
    }
    tools = {name: {"image": IMAGE, **given} for name, given in about_image.items()}
    tools["search"] = {"collection": "pets", "text": "a cat"}
    async with Client(build({"address": address, "model": "edge"}, KEY)) as client:
        for tool, given in tools.items():
            for named in ({}, {"model": "mobile"}):
                await answer(client, tool, **given, **named)
                assert fake.calls[-1][0].model == named.get("model", "edge")


async def test_photographs_of_several_megabytes_are_sent_over_http(
    service: tuple[FakeService, str],
) -> None:
    fake, address = service
    large = base64.b64encode(PHOTO + bytes(6_000_000)).decode()  # PNG ends before them
    async with over_http(address) as client:
        await answer(client, "classify", image=large, labels=["a cat"])
    assert len(fake.uploads) == 1


async def test_pages_of_other_sites_may_not_ask(service: tuple[FakeService, str]) -> None:
    """A browser names its page in Origin, and in Host a name that was made to lead here."""
    fake, address = service
    asked = {"name": "describe", "arguments": {}}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}
    accept = {"accept": "application/json, text/event-stream"}
    async with at_a_port(address) as url, httpx.AsyncClient(headers=accept) as page:
        own = url.removesuffix("/mcp")
        for others, status in (
            ({"origin": own}, 200),
            ({"host": f"evil.example:{httpx.URL(url).port}"}, 421),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "http://localhost.evil.example:80"}, 403),
            ({"content-type": "text/plain"}, 400),  # which a browser sends without asking first
        ):
            fake.calls.clear()
            reply = await page.post(url, json=call, headers=others)
            assert reply.status_code == status, (others, reply.text)
            assert bool(fake.calls) is (status == 200)
            if status in (403, 421):
                assert (await page.get(url, headers=others)).status_code == status


async def test_paths_and_addresses_are_not_read(service: tuple[FakeService, str]) -> None:
    fake, address = service
    async with inside(address) as client:
        for image in ("/etc/passwd", "https://example.com/cat.jpg", "cat.jpg", "file:///cat.jpg"):
            words = await refused(client, "classify", image=image, labels=["a cat"])
            assert "paths and addresses are not read" in words
    assert not fake.calls


async def test_errors_of_the_service_reach_the_assistant(service: tuple[FakeService, str]) -> None:
    _, address = service
    async with inside(address) as client:
        broken = base64.b64encode(b"broken file").decode()
        assert "not an image" in await refused(client, "find", image=broken, texts=["a cat"])
        assert "send the image" in await refused(client, "find", image="0" * 64, texts=["a cat"])


@pytest.mark.parametrize("port", ["0", "65536", "eighty"])
def test_a_port_that_there_is_not_is_a_plain_error(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--http", port])
    assert f"argument --http: invalid port value: '{port}'" in capsys.readouterr().err
