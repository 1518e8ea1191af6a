"""The list and the API document have the heads of one's own that answer, whatever others do."""

import asyncio
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core import Head
from samclip_core.errors import NotFound, Unavailable
from services.gateway import heads, openapi
from services.gateway.adapters.adapter import Applications
from services.heads.own.parameters import Parameters
from services.request import messages
from services.request.context import RequestContext
from services.settings import Settings
from tests import own_heads
from tests.unit.services.gateway.test_openapi import references


def listed(kind: type[Head], name: str) -> pb.ListedHead:
    found = pb.ListedHead(name=name, description=kind.__doc__ or "")
    found.parameters.update(Parameters(kind()).schema)
    return found


def test_a_route_says_what_its_head_takes() -> None:
    away = pb.ListedHead(name="away", reason="it is loading")
    served = [listed(own_heads.Echo, "my-echo"), away, listed(own_heads.Closest, "closest")]
    document = openapi.with_heads(openapi.document(), served)
    assert document["paths"].keys() - openapi.document()["paths"].keys() == {
        *("/heads/my-echo", "/heads/closest"),
    }
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= schemas
    operation = document["paths"]["/heads/my-echo"]["post"]
    assert operation["operationId"] == "AskMyEcho"
    assert operation["summary"] == "Answers with its parameters."
    form, body = operation["requestBody"]["content"].values()
    parameters = [*own_heads.Echo.Parameters.model_fields]  # in the order of the class
    for kind in (form, body):
        assert [*kind["schema"]["properties"]] == ["image", *parameters, "encoding", "model"]
    assert form["encoding"] == {"words": openapi.SEVERAL, "sizes": openapi.SEVERAL}
    schema = {**body["schema"], "components": document["components"]}
    check = jsonschema.Draft202012Validator(schema).is_valid
    assert check({"image": "aGk=", "sides": 3, "colour": {"red": 1}, "words": None})
    for wrong in ({}, {"sides": -1}, {"sides": 3, "colour": {"red": "much"}}):
        assert not check({"image": "aGk=", **wrong})
    assert "example" not in body  # which needs a value that has no default
    content = document["paths"]["/heads/closest"]["post"]["requestBody"]["content"]
    example = content[openapi.JSON]["example"]
    asked = messages.to_message(pb.AskRequest, example, form=False)
    assert [*asked.parameters["words"]] == ["red", "blue"]


@pytest.mark.parametrize(
    ("changed", "most", "reasons"),
    [
        ({}, 9, ["", "it is loading"]),
        ({"api_keys_file": Path("keys")}, 9, []),  # and the caller has shown none
        ({}, 0, []),  # too many requests
    ],
)
async def test_the_document_never_fails_for_a_head(
    settings: Settings, monkeypatch, changed: dict[str, Any], most: int, reasons: list[str]
) -> None:
    specs = ("tests.own_heads:Echo", "tests.own_heads:Parts")
    applications = Applications(settings.model_copy(update={"heads": specs, **changed}), most)

    async def call(rpc: str, request: Any, context: Any, application: str) -> Any:
        if application == "head-parts":
            raise Unavailable("it is loading")
        return pb.ListHeadsResponse(heads=[pb.ListedHead(name="echo")])

    monkeypatch.setattr(applications, "call", call)
    assert [head.reason for head in await heads.described(applications, {})] == reasons


async def test_a_head_that_fails_or_hangs_keeps_no_other_from_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "LISTED_S", 0.05)

    async def call(rpc: str, request: Any, context: RequestContext, application: str) -> Any:
        match request.head:
            case "hangs":
                await asyncio.Event().wait()
            case "gone":
                raise Unavailable("no replica")
            case "broken":
                raise RuntimeError("INTERNAL: internal error")
        return pb.ListHeadsResponse(heads=[pb.ListedHead(name=request.head)])

    applications = Applications(Settings(heads="a:Hangs,a:Gone,a:Broken,a:Sound"))
    monkeypatch.setattr(applications, "call", call)
    reply = await heads.listed(applications, RequestContext())
    assert {head.name: head.reason for head in reply.heads} == {
        "hangs": "no answer within 0 s",
        "gone": "no replica",
        "broken": "INTERNAL: internal error",
        "sound": "",
    }
    with pytest.raises(NotFound, match="only hangs, gone, broken, sound"):
        await heads.listed(applications, RequestContext(), "other")
