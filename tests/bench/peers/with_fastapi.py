"""FastAPI as one would write it by hand: decoding in threads, a batcher in front of one more."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from tests.bench.peers.work import MAX_BATCH, PATH, PORT, WAIT_S, Encoder

encoder = Encoder()
device = ThreadPoolExecutor(1)
waiting: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue()


async def batches() -> None:
    loop = asyncio.get_running_loop()
    while True:
        batch = [await waiting.get()]
        until = loop.time() + WAIT_S
        while len(batch) < MAX_BATCH:
            try:
                batch.append(await asyncio.wait_for(waiting.get(), until - loop.time()))
            except TimeoutError:
                break
        images = [image for image, _ in batch]
        answers = await loop.run_in_executor(device, encoder.encode, images)
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(batches())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post(PATH)
async def embed(request: Request) -> dict[str, list[float]]:
    image = await asyncio.to_thread(encoder.decode, await request.body())
    future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
    waiting.put_nowait((image, future))
    return {"embedding": await future}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
