"""Hundreds of requests of all routes are answered as they were recorded, and alike over gRPC.

The requests are the examples of the API document, and each again with every field of its message
left out or replaced by what does not fit, as JSON and as forms. The recording has the status, the
sentence of an error, and the fields of an answer; its numbers differ between processors. With
``SAMCLIP_RECORD=1`` this module writes it again.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any

import grpc
import httpx
import pytest

from samclip_core.errors import SamClipError
from services.gateway import openapi
from services.request import http
from services.request.messages import to_message
from services.request.routes import ROUTES, Route, routes_of
from services.request.to_json import to_json
from tests.checkout import ROOT
from tests.in_process import ADMITTED, Caller

FILE = ROOT / "tests/golden/requests.json"
HEAD = "head-parts"
WRONG: list[Any] = [None, "", "x", -1, 1.5, 1e39, [], ["x"], [None], {}, {"x": 1}, True]
"""Values in place of a field's own, of which few fit any field."""
CHANGES = {"Index", "Delete", "PutConcept", "DeleteConcept"}
"""Rpcs that answer otherwise when they are asked again."""
BROKEN = ["", "[]", "{", '{"labels": NaN}', '{"labels": [], "labels": []}', "[" * 99]
"""Bodies that are no requests."""
Row = tuple[str, str, Any]
"""A path, the kind of a body, and its content."""
ROUTE = {route.path: route for routes in (*ROUTES.values(), routes_of(HEAD)) for route in routes}
IMAGE = openapi.EXAMPLES["Classify"]["image"]


def example(route: Route) -> dict[str, Any]:
    return {"image": IMAGE} if route.rpc == "Ask" else openapi.example(route)


def rows() -> Iterator[Row]:
    """Yield the requests, in the order of the API document: what is indexed is found later."""
    values = iter(WRONG * 99)
    for path, route in ROUTE.items():
        fields = example(route)
        yield from ((path, kind, fields) for kind in ("json", "form"))
        yield from ((path, "raw", body) for body in BROKEN)
        for field in route.request.DESCRIPTOR.fields:
            others = {name: each for name, each in fields.items() if name != field.name}
            yield path, "json", others
            yield path, "form", {**others, field.name: "x"}
            for value in islice(values, 5):
                yield path, "json", {**others, field.name: value}


def sent(kind: str, content: Any) -> dict[str, Any]:
    """Return what httpx sends; a form has images as files, and objects as JSON."""
    if kind == "json":
        return {"json": content}
    if kind == "raw":
        return {"content": content, "headers": {"content-type": "application/json"}}
    files = list[tuple[str, tuple[str | None, Any]]]()
    for name, value in content.items():
        for one in value if isinstance(value, list) else [value]:
            if one == IMAGE:
                files.append((name, ("a.png", base64.b64decode(one))))
            else:
                files.append((name, (None, one if isinstance(one, str) else json.dumps(one))))
    return {"files": files}


def shape(value: Any) -> Any:
    """Return the names and types of an answer's fields."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return type(value).__name__


class Routes:
    """HTTP clients of the services, by the path that they answer."""

    def __init__(self, caller: Caller, opened: AsyncExitStack) -> None:
        self._found, self._opened = dict[str, httpx.AsyncClient](), opened
        for service in caller.services:
            app = httpx.ASGITransport(http.application(service.application, service))
            client = httpx.AsyncClient(transport=app, base_url="http://x", headers=dict(ADMITTED))
            opened.push_async_callback(client.aclose)
            self._found |= {route.path: client for route in routes_of(service.application)}

    async def __call__(self, path: str, kind: str, content: Any) -> tuple[int, dict[str, Any]]:
        reply = await self._found[path].post(path, **sent(kind, content))
        return reply.status_code, reply.json()


def comparable(status: int, reply: dict[str, Any]) -> list[Any]:
    if status == 200:
        return [200, shape(reply)]
    return [status, reply["title"], re.sub(r"[0-9a-f]{32}|\d+\.\d+", "…", reply["detail"])]


async def test_requests_are_answered_as_they_were_recorded(caller: Caller) -> None:
    found = dict[str, list[Any]]()
    async with AsyncExitStack() as opened:
        ask = Routes(caller, opened)
        for row in rows():
            found.setdefault(row[0], []).append(comparable(*await ask(*row)))
    if os.environ.get("SAMCLIP_RECORD"):
        lines = (f"{json.dumps(path)}: {json.dumps(answers)}" for path, answers in found.items())
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    recorded = json.loads(FILE.read_text())
    assert recorded.keys() == found.keys()
    for path, *request in rows():
        assert found[path].pop(0) == recorded[path].pop(0), (path, request)
    assert not any(recorded.values())


async def test_grpc_answers_as_http_does(caller: Caller) -> None:
    async with AsyncExitStack() as opened:
        ask = Routes(caller, opened)
        for path, _, fields in [row for row in rows() if row[1] == "json"][::5]:
            route = ROUTE[path]
            if route.rpc in CHANGES:
                continue
            try:
                message = to_message(route.request, fields, form=False)
            except SamClipError:
                continue  # which gRPC cannot say
            _, reply = await ask(path, "json", fields)
            try:
                answer = to_json(await caller(route.rpc, message))
            except grpc.aio.AioRpcError as error:
                answer = {**reply, "status": reply.get("status"), "detail": error.details()}
            assert alike(reply, answer), (path, fields)


def alike(one: Any, other: Any) -> bool:
    """Return whether two answers have the same fields and values; of one image, its scores."""
    if isinstance(one, dict):
        if one.keys() != other.keys() and "results" in other:
            one = {"results": [{"image": one["image"], "scores": one["results"]}]}
            other = {"results": other["results"]}
        return one.keys() == other.keys() and all(
            alike(one[name], other[name]) for name in one if name != "cached"
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == (pytest.approx(other, rel=1e-3, abs=1e-4) if type(one) is float else other))
