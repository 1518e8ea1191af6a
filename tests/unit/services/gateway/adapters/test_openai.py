"""OpenAI's embeddings, with requests as the ``openai`` package and LangChain send them."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from services.gateway.adapters.adapter import MAX_AT_ONCE, Applications
from services.request import wire
from services.request.context import KEY, SCOPES, TENANT
from tests.in_process import Caller
from tests.unit.services.gateway.adapters.conftest import (
    asked_through,
    swapped,
    uri,
)

RECORDED = [
    json.loads(line) for line in Path(__file__).with_name("openai.jsonl").read_text().splitlines()
]
"""Requests of real clients; keys and hosts are left out."""


@pytest.fixture
async def info(caller: Caller) -> pb.ModelInfo:
    reply = await caller("EmbedText", pb.EmbedTextRequest(texts=["x"]))
    return reply.model


@pytest.fixture
def model(info: pb.ModelInfo) -> str:
    return info.name


@pytest.fixture
def model_id(info: pb.ModelInfo) -> str:
    return f"{info.name}@{info.digest[:12]}" + (f"-{info.graphs[:12]}" if info.graphs else "")


def vectors(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data], np.float32)


async def test_texts_and_images_have_the_vectors_of_embed(
    adapters: httpx.AsyncClient, caller: Caller, model: str, model_id: str, photo: bytes
) -> None:
    reply = await adapters.post(
        "/v1/embeddings", json={"model": model, "input": ["a cat", uri(photo), "a dog"]}
    )
    found_TD = vectors(reply)
    texts = await caller("EmbedText", pb.EmbedTextRequest(texts=["a cat", "a dog"]))
    image = pb.EmbedRequest(image=pb.Image(encoded=photo), outputs=[pb.CLIP_POOLED], inline=True)
    pooled = (await caller("Embed", image)).tensors[0]
    np.testing.assert_allclose(found_TD[[0, 2]], wire.from_tensor(texts.tensor), atol=1e-6)
    np.testing.assert_allclose(found_TD[1], wire.from_tensor(pooled), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found_TD, axis=1), 1, atol=1e-3)
    body = reply.json()
    assert (body["object"], body["model"], body["usage"]["total_tokens"]) == ("list", model_id, 0)


async def test_parts_of_messages_have_the_vectors_of_strings(
    adapters: httpx.AsyncClient, model: str, photo: bytes
) -> None:
    """OpenAI's Responses and Chat Completions have these parts, and vLLM's embeddings messages."""
    asked = {"model": model, "input": ["a cat", uri(photo)]}
    text_D, image_D = vectors(await adapters.post("/v1/embeddings", json=asked))
    texts = [{"type": "text", "text": "a cat"}, {"type": "input_text", "text": "a cat"}]
    images = [
        {"type": "image_url", "image_url": {"url": uri(photo), "detail": "low"}},
        {"type": "image_url", "image_url": uri(photo)},
        {"type": "input_image", "image_url": uri(photo)},
    ]
    reply = await adapters.post("/v1/embeddings", json={**asked, "input": [*texts, *images]})
    np.testing.assert_allclose(vectors(reply), [text_D] * 2 + [image_D] * 3, atol=1e-6)
    for content, expected_D in ([images[0]], image_D), ("a cat", text_D), (texts[:1], text_D):
        said = [{"role": "user", "content": content}]
        reply = await adapters.post("/v1/embeddings", json={"model": model, "messages": said})
        np.testing.assert_allclose(vectors(reply), [expected_D], atol=1e-6)


async def test_base64_holds_the_same_numbers(adapters: httpx.AsyncClient, model: str) -> None:
    asked = {"model": model, "input": "a cat"}
    found_1D = vectors(await adapters.post("/v1/embeddings", json=asked))
    packed = await adapters.post("/v1/embeddings", json={**asked, "encoding_format": "base64"})
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), found_1D[0], atol=1e-6)


async def test_the_model_is_listed_under_an_id_that_a_request_may_name(
    adapters: httpx.AsyncClient, model_id: str
) -> None:
    body = (await adapters.get("/v1/models")).json()
    assert body["object"] == "list"
    listed = [(one["id"], one["object"]) for one in body["data"]]
    assert listed == [(model_id, "model")]
    reply = await adapters.post("/v1/embeddings", json={"model": model_id, "input": "a cat"})
    assert reply.json()["model"] == model_id


async def test_after_a_swap_no_reply_names_the_model_before(
    adapters: httpx.AsyncClient,
    applications: Applications,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    model_id: str,
) -> None:
    async def asked(name: str) -> httpx.Response:
        return await adapters.post("/v1/embeddings", json={"model": name, "input": "a cat"})

    assert [(await asked(name)).status_code for name in (model, model_id)] == [200, 200]
    swapped(applications, monkeypatch, "Embed", digest="0" * 64)
    assert (await asked(model)).json()["model"] == f"{model}@{'0' * 12}"
    refused = await asked(model_id)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert f"the model is '{model}@{'0' * 12}', not" in refused.json()["error"]["message"]
    swapped(applications, monkeypatch, "Embed", graphs="1" * 64)
    assert (await asked(model)).json()["model"] == f"{model}@{'0' * 12}-{'1' * 12}"
    assert (await asked(f"{model}@{'0' * 12}")).status_code == 404  # without graphs
    swapped(applications, monkeypatch, "Embed", name="other")
    assert (await asked(model)).status_code == 404
    assert (await asked("other")).json()["model"] == f"other@{'0' * 12}-{'1' * 12}"


@pytest.mark.parametrize("part", ["digest", "graphs"])
async def test_vectors_of_two_models_are_not_mixed(
    adapters: httpx.AsyncClient,
    applications: Applications,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    photo: bytes,
    part: str,
) -> None:
    swapped(applications, monkeypatch, "Embed", **{part: "1" * 64})
    swapped(applications, monkeypatch, "EmbedText", **{part: "0" * 64})
    reply = await adapters.post("/v1/embeddings", json={"model": model, "input": ["a", uri(photo)]})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert "swapped during the request" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"input": [1, 2, 3]}, 400, "input 0 has token numbers"),
        ({"dimensions": 256}, 400, "dimensions cannot be chosen"),
        ({"encoding_format": "int8"}, 400, "expected float or base64"),
        ({"input": []}, 400, "input is empty"),
        ({"input": None}, 400, "input 0 is not a string"),
        ({"input": ["a cat", " "]}, 400, "input 1 is empty"),
        ({"input": "https://example.com/cat.jpg"}, 400, "images are not fetched"),
        ({"input": [{"type": "image_url", "image_url": {}}]}, 400, "not an image"),
        ({"input": [{"type": "input_file"}]}, 400, "input 0 is not a string"),
        ({"input": None, "messages": []}, 400, "messages is not one message"),
        ({"input": None, "messages": [{"content": ["a", "b"]}]}, 400, "one part"),
        ({"input": "a", "messages": [{"content": "a"}]}, 400, "in place of input"),
        ({"input": "data:image/png;base64,####"}, 400, "is not base64"),
        ({"input": "data:text/plain,hello"}, 415, "data URI"),
        ({"model": "text-embedding-3-small"}, 404, "not 'text-embedding-3-small'"),
        ({"model": None}, 400, "no model"),
        ({"stream": True}, 400, "unknown field 'stream'"),
        ({"input": ["a"] * 20_000}, 400, "20000 inputs, at most 2,048"),
    ],
)
async def test_what_is_not_offered_is_refused_in_openais_shape(
    adapters: httpx.AsyncClient, model: str, changed: dict[str, Any], code: int, words: str
) -> None:
    asked = {"model": model, "input": "a cat", **changed}
    reply = await adapters.post("/v1/embeddings", json=asked)
    error = reply.json()["error"]
    assert (reply.status_code, set(error)) == (code, {"message", "type", "param", "code"})
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_an_error_names_its_image(
    adapters: httpx.AsyncClient, model: str, photo: bytes
) -> None:
    asked = {"model": model, "input": [uri(photo), uri(photo[:100])]}
    reply = await adapters.post("/v1/embeddings", json=asked)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("image 1: ")


@pytest.mark.parametrize("sent", RECORDED, ids=lambda sent: sent["path"])
async def test_requests_as_openai_langchain_and_llamaindex_send_them(
    adapters: httpx.AsyncClient, model: str, sent: dict[str, Any]
) -> None:
    body = base64.b64decode(sent["body"]).replace(b'"edge"', f'"{model}"'.encode())
    headers = {name: sent["headers"][name] for name in sent["headers"].keys() - {"content-length"}}
    reply = await adapters.request(sent["method"], sent["path"], content=body, headers=headers)
    assert reply.status_code == 200, reply.text
    if sent["method"] == "POST":
        vectors = [base64.b64decode(row["embedding"]) for row in reply.json()["data"]]
        assert len(vectors) == len(json.loads(body)["input"])
        for vector in vectors:
            assert np.linalg.norm(np.frombuffer(vector, "<f4")) == pytest.approx(1, abs=1e-3)


async def test_a_key_counts_as_everywhere(
    applications: Applications,
) -> None:
    guarded = {"api_keys_file": Path("keys")}
    applications.settings = applications.settings.model_copy(update=guarded)
    async with asked_through(applications) as adapters:
        reply = await adapters.get("/v1/models")
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        headers = {KEY: "ann", TENANT: "acme", SCOPES: "index"}
        reply = await adapters.get("/v1/models", headers=headers)
        assert (reply.status_code, reply.json()["error"]["type"]) == (403, "permission_error")
        headers[SCOPES] = "read"
        assert (await adapters.get("/v1/models", headers=headers)).status_code == 200


async def test_no_more_requests_at_once_than_there_are_places(
    adapters: httpx.AsyncClient, applications: Applications
) -> None:
    applications.places.number = MAX_AT_ONCE
    reply = await adapters.get("/v1/models")
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
