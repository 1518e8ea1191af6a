"""Callers of a cluster that count their answers."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as stubs

from tests.in_process import png

CLIENTS = 6
ASKED = ("SegmentationService", "ClassificationService")


@dataclass
class Load:
    """Observations of the clients.

    digests: of the answers, in order. errors: (time, message). waiting: requests in flight.
    codes: counts by (service, code).
    """

    digests: list[str] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    waiting: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def until(self, count: int) -> None:
        """Wait for ``count`` more answers."""
        target = len(self.digests) + count
        while len(self.digests) < target:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def load() -> AsyncIterator[Load]:
    """Run clients with separate channels that send requests with new pictures in a loop."""
    seen, stop = Load(), asyncio.Event()

    async def ask(client: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel("127.0.0.1:9000", options=options) as channel:
            classify = stubs.ClassificationServiceStub(channel).Classify
            segment = stubs.SegmentationServiceStub(channel).Segment
            number = 0
            while not stop.is_set():
                number += 1
                image = pb.Image(encoded=png(noise=1_000_000 * client + number))
                prompts = [pb.Prompt(points=[pb.Point(x=20, y=15)])]
                seen.waiting += 1
                try:
                    if number % 2:
                        request = pb.ClassifyRequest(images=[image], labels=["a dog", "a cat"])
                        answer = await classify(request, timeout=60)
                    else:
                        answer = await segment(
                            pb.SegmentRequest(image=image, prompts=prompts), timeout=60
                        )
                    seen.digests.append(answer.model.digest)
                    code = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    code = error.code()
                    seen.errors.append((time.monotonic(), f"{code} {error.details()}"))
                finally:
                    seen.waiting -= 1
                seen.codes[ASKED[number % 2], code.name] += 1

    clients = [asyncio.create_task(ask(client)) for client in range(CLIENTS)]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*clients)


async def mistakes(seen: Load, number: int) -> None:
    """Send ``number`` requests that must fail, sequentially and thus to alternating replicas."""
    unknown, points = pb.Image(key="0" * 64), [pb.Prompt(points=[pb.Point(x=1, y=1)])]
    async with grpc.aio.insecure_channel("127.0.0.1:9000") as channel:
        classify = stubs.ClassificationServiceStub(channel).Classify
        segment = stubs.SegmentationServiceStub(channel).Segment
        for turn in range(number):
            call = (
                classify(pb.ClassifyRequest(images=[unknown]), timeout=60)
                if turn % 2
                else segment(pb.SegmentRequest(image=unknown, prompts=points), timeout=60)
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            seen.codes[ASKED[turn % 2], refused.value.code().name] += 1
