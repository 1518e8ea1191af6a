"""What all adapters share: several images at once, and replies made off the event loop."""

import asyncio
import threading
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.applications import IMAGES_AT_ONCE, each
from services.gateway.adapters.openai import routes as openai
from services.gateway.adapters.weaviate import routes as weaviate


async def test_the_first_error_stops_the_work_on_other_images() -> None:
    running: set[int] = set()
    most = 0

    async def work(image: int) -> None:
        nonlocal most
        running.add(image)
        most = max(most, len(running))
        try:
            if image == 3:
                raise InvalidRequest("no image")
            await asyncio.sleep(60)
        finally:
            running.remove(image)

    with pytest.raises(InvalidRequest, match=r"^image 3: no image$"):
        await each(work, range(100))
    assert not running
    assert most <= IMAGES_AT_ONCE


async def test_the_answers_are_in_the_order_of_the_images() -> None:
    async def work(image: int) -> int:
        await asyncio.sleep(0.001 * (image % 3))
        return image

    assert await each(work, range(40)) == [*range(40)]


@pytest.mark.parametrize(
    ("module", "path", "body"),
    [
        (openai, "/v1/embeddings", {"model": "", "input": ["a cat"]}),
        (weaviate, "/adapters/weaviate/vectorize", {"texts": ["a cat"]}),
    ],
)
async def test_vectors_become_json_in_another_thread(
    adapters: httpx.AsyncClient,
    module: Any,
    path: str,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "model" in body:
        body = {**body, "model": (await adapters.get("/v1/models")).json()["data"][0]["id"]}
    threads = []

    def respond(values: Any) -> JSONResponse:
        threads.append(threading.current_thread())
        return JSONResponse(values)

    monkeypatch.setattr(module, "JSONResponse", respond)
    assert (await adapters.post(path, json=body)).status_code == 200
    assert threads
    assert threading.main_thread() not in threads
