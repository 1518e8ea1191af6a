"""The adapters over HTTP without a socket, in front of all applications with random weights."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from samclip.mask_codecs import encode_polygons
from samclip.v1 import samclip_pb2 as pb

from services.gateway.adapters.adapter import Applications
from services.gateway.app import add_adapters
from services.request import http
from services.settings import Settings
from tests.in_process import Caller, png
from tests.unit.services.gateway.test_app import Fixed

READY = Fixed(backbone=True, classification=True, segmentation=True)


@pytest.fixture
async def applications(settings: Settings, caller: Caller) -> AsyncIterator[Applications]:
    """Return stubs of the applications that ``caller`` reaches."""
    found = Applications(settings.model_copy(update={"inner_grpc_port": caller.port}))
    yield found
    await found.close()


def asked_through(applications: Applications) -> httpx.AsyncClient:
    """Return a client of all adapters."""
    app = http.new_app()
    add_adapters(app, applications, READY)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture
async def adapters(applications: Applications) -> AsyncIterator[httpx.AsyncClient]:
    async with asked_through(applications) as opened:
        yield opened


@pytest.fixture
def photo() -> bytes:
    return png(red=200)


@pytest.fixture
async def clicked(caller: Caller, photo: bytes) -> pb.Mask:
    """Return the mask of two clicks, at (10, 12) and outside at (30, 6), and of a box."""
    points = [pb.Point(x=10, y=12), pb.Point(x=30, y=6, negative=True)]
    prompt = pb.Prompt(points=points, box=pb.Box(x_min=2, y_min=3, x_max=32, y_max=27))
    request = pb.SegmentRequest(image=pb.Image(encoded=photo), prompts=[prompt])
    (mask,) = (await caller("Segment", request)).results[0].masks
    return mask


def uri(photo: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(photo).decode()}"


def swapped(
    applications: Applications, monkeypatch: pytest.MonkeyPatch, rpc: str, **info: str
) -> None:
    """Let another checkpoint answer an rpc from now on: its replies say so."""
    real = applications.call

    async def call(asked: str, request: Any, context: Any) -> Any:
        reply = await real(asked, request, context)
        if asked.startswith(rpc):
            reply.model.MergeFrom(pb.ModelInfo(**info))
        return reply

    monkeypatch.setattr(applications, "call", call)


def outlines_of(mask_HW: np.ndarray) -> list[np.ndarray]:
    """Return the N×2 outlines that annotators get, by the shoelace formula."""
    rings = encode_polygons(mask_HW)
    areas = [
        float(np.linalg.det(np.stack([ring_N2, np.roll(ring_N2, -1, 0)], 1)).sum())
        for ring_N2 in rings
    ]
    return [ring for ring, area in zip(rings, areas, strict=True) if area > 0.02 * max(areas)]
