"""Weaviate's module multi2vec-clip, whose Go client names no content type."""

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from services.request import wire
from tests.in_process import Caller
from tests.unit.services.gateway.adapters.conftest import READY

PREFIX = "/adapters/weaviate"
GO = {"user-agent": "Go-http-client/1.1", "accept-encoding": "gzip"}


async def vectorize(adapters: httpx.AsyncClient, **body: Any) -> httpx.Response:
    content = json.dumps(body, separators=(",", ":"))
    return await adapters.post(f"{PREFIX}/vectorize", content=content, headers=GO)


async def test_texts_and_images_have_the_vectors_of_embed(
    adapters: httpx.AsyncClient, caller: Caller, photo: bytes
) -> None:
    texts = ["a cat", "a dog"]
    images = [base64.b64encode(photo).decode()]
    found = (await vectorize(adapters, texts=texts, images=images)).json()
    expected = await caller("EmbedText", pb.EmbedTextRequest(texts=texts))
    text_TD = np.array(found["textVectors"], np.float32)
    np.testing.assert_array_equal(text_TD, wire.from_tensor(expected.tensor))
    embed = pb.EmbedRequest(image=pb.Image(encoded=photo), outputs=[pb.CLIP_POOLED], inline=True)
    pooled_D = wire.from_tensor((await caller("Embed", embed)).tensors[0])
    np.testing.assert_array_equal(np.array(found["imageVectors"], np.float32), [pooled_D])


async def test_a_missing_list_is_null_in_go(adapters: httpx.AsyncClient) -> None:
    found = (await vectorize(adapters, texts=["a cat"], images=None)).json()
    assert (len(found["textVectors"]), found["imageVectors"]) == (1, [])


async def test_it_is_ready_when_all_applications_are(
    adapters: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await adapters.get(f"{PREFIX}/.well-known/ready")).status_code == 204
    assert (await adapters.get(f"{PREFIX}/meta")).json()["model"]
    monkeypatch.setitem(READY.reports, "backbone", {"ready": False})
    assert (await adapters.get(f"{PREFIX}/.well-known/ready")).status_code == 503


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"texts": "a cat"}, "texts is not a list"),
        ({"images": [7]}, "images is not a list"),
        ({"images": ["https://example.com/a.jpg"]}, "fetches none"),
        ({"images": ["AAAA"] * 65}, "at most 64"),
        ({"texts": [""]}, "is empty"),
    ],
)
async def test_errors_are_where_weaviate_looks_for_them(
    adapters: httpx.AsyncClient, body: dict[str, Any], words: str
) -> None:
    reply = await vectorize(adapters, **body)
    assert reply.status_code == 400
    assert words in reply.json()["error"]
