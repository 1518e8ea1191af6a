"""Ray Serve as its documentation shows it: one deployment with ``serve.batch`` behind its proxy."""

import asyncio
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.bench.peers.work import MAX_BATCH, PATH, PORT, WAIT_S, Encoder


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Embed:
    def __init__(self) -> None:
        self.encoder = Encoder()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def encode(self, images: list[Any]) -> list[list[float]]:
        return await asyncio.to_thread(self.encoder.encode, images)

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        image = await asyncio.to_thread(self.encoder.decode, await request.body())
        return {"embedding": await self.encode(image)}


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Embed.bind(), route_prefix=PATH)
    signal.pause()
