"""FastAPI with a hand-written batcher: threads decode, one more thread runs the batches."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from benchmarks.servers import work

worker = ThreadPoolExecutor(1)
waiting: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue()


async def batches(model: work.Work) -> None:
    loop = asyncio.get_running_loop()
    while True:
        batch = [await waiting.get()]
        until = loop.time() + work.WAIT_S
        while len(batch) < work.MAX_BATCH:
            try:
                batch.append(await asyncio.wait_for(waiting.get(), until - loop.time()))
            except TimeoutError:
                break
        inputs, _ = zip(*batch, strict=True)
        answers = await loop.run_in_executor(worker, model.run, inputs)
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.model = await asyncio.get_running_loop().run_in_executor(worker, work.chosen)
    task = asyncio.create_task(batches(app.state.model))
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post(work.PATH)
async def ask(request: Request) -> dict[str, Any]:
    prepared = await asyncio.to_thread(app.state.model.read, await request.body())
    future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    waiting.put_nowait((prepared, future))
    return await future


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=work.PORT, log_level="warning")
