"""``GET /models/NAME/decoder.onnx``, in front of a backbone without a socket."""

import hashlib
from typing import Any

import httpx
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io import checkpoint
from services.gateway.adapters.adapter import Applications
from services.gateway.app import add_models
from services.request import http
from services.settings import Settings
from tests.in_process import Caller

PATH = "/models/edge/decoder.onnx"


def asked_through(applications: Applications) -> httpx.AsyncClient:
    app = http.new_app()
    add_models(app, applications)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_it_is_sent_once_under_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, file = list[pb.GetDecoderRequest](), b"a graph"
    digest = hashlib.sha256(file).hexdigest()

    async def call(rpc: str, request: Any, context: Any) -> pb.GetDecoderResponse:
        asked.append(request)
        sent = b"" if request.known == digest else file
        return pb.GetDecoderResponse(onnx=sent, digest=digest, model=pb.ModelInfo(digest="ab"))

    applications = Applications(Settings())
    monkeypatch.setattr(applications, "call", call)
    async with asked_through(applications) as door:
        first = await door.get(PATH)
        assert (first.status_code, first.content) == (200, file)
        assert first.headers["etag"] == f'"{digest}"'
        assert first.headers["x-samclip-model"] == "ab"
        again = await door.get(PATH, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = await door.get(PATH, headers={"if-none-match": '"' + "0" * 9999 + '"'})
        assert other.content == file
    assert [request.model for request in asked] == ["edge"] * 3
    assert len(asked[2].known) == checkpoint.DIGITS


@pytest.fixture
def applications(settings: Settings, caller: Caller) -> Applications:
    return Applications(settings.model_copy(update={"inner_grpc_port": caller.port}))


async def test_a_checkpoint_without_graphs_says_which_command_makes_them(
    applications: Applications,
) -> None:
    async with asked_through(applications) as door:
        reply = await door.get(PATH)
    await applications.close()
    assert reply.status_code == 404
    assert "`samclip export CHECKPOINT`" in reply.json()["detail"]
    assert reply.headers["content-type"] == "application/problem+json"
