"""A steady load that checks every answer and records every request.

There is one caller per kind of request. A failed request is sent again unchanged until it is
answered, as a client would retry it. Half of the pictures have been sent before, half are new
files.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Self

import cv2
import grpc
import httpx
import numpy as np
from google.protobuf.message import Message
from samclip.mask_codecs import decode_label_map, decode_rle
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from samclip_core import Prompt, SamClip
from tests.e2e.conftest import Service

PACE_S = 0.25
"""Pause between two requests of a caller."""
ATTEMPT_S = 30.0
"""Deadline of one attempt; the client's default is 60 seconds."""
PATIENT_S = 600
"""The same where nothing hangs, so that a slow machine refuses nothing; limit of a recovery."""
AGAIN_S = 0.2
"""Pause before a failed request is sent again."""
IN_A_ROW = 4
"""Consecutive answers of a kind that count as recovery."""
LABELS = ["a cat", "a dog", "the sea", "a red car", "grass"]
POINT = (20.0, 15.0)
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),  # measure the service's recovery, not the back-off
]


@dataclass(frozen=True)
class Attempt:
    """An attempt of a request: its times of ``time.monotonic`` and its outcome."""

    sent: float
    done: float
    code: str  # OK, WRONG, a gRPC status, or an HTTP error


@dataclass(frozen=True, eq=False)
class Picture:
    """A file with the library's answers for it."""

    file: bytes
    pooled_D: np.ndarray
    mask_HW: np.ndarray
    label_map_HW: np.ndarray
    probabilities: dict[str, float]


class Pictures:
    """A few different pictures, also as fresh files that no cache holds."""

    def __init__(self, model: SamClip, number: int = 6):
        self._known = [_picture(model, seed) for seed in range(number)]
        self._fresh = count(time.time_ns())

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, number: int) -> Picture:
        return self._known[number]

    def file(self, number: int, fresh: bool) -> bytes:
        """Return a PNG file; trailing bytes make a ``fresh`` one a new file of the same pixels."""
        tail = next(self._fresh).to_bytes(8, "little") if fresh else b""
        return self._known[number].file + tail


def _picture(model: SamClip, seed: int) -> Picture:
    random = np.random.default_rng(seed)
    small_HW3 = random.integers(0, 255, (5, 7, 3), np.uint8)
    image = cv2.resize(small_HW3, (64, 48), interpolation=cv2.INTER_CUBIC)
    file = cv2.imencode(".png", image)[1].tobytes()
    return Picture(
        file,
        model.embed_image(file),
        model.segment(file, [Prompt(points=(POINT,))], multimask=False)[0].masks_MHW[0],
        model.segment_text(file, LABELS).label_map_HW,
        {score.label: score.score for score in model.classify(file, LABELS)},
    )


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Compare masks or label maps; storage as float16 may move their edges by a pixel."""
    return found.shape == expected.shape and bool(np.mean(found == expected) > 0.97)


class Questions:
    """Requests of every kind, each of which checks its answer.

    ``kinds`` maps a name to a coroutine function of (number, timeout in seconds), which returns
    whether the answer was correct. Without ``backbone``, there are no backbone requests.
    """

    def __init__(self, service: Service, pictures: Pictures, name: str, backbone: bool = True):
        self._pictures = pictures
        self._backbone = backbone
        self._collection = name
        self._channel = grpc.aio.insecure_channel(service.address, OPTIONS)
        self._http = httpx.AsyncClient(base_url=service.url)
        self._call = {
            pb.ClassifyRequest: rpc.ClassificationServiceStub(self._channel).Classify,
            pb.SegmentRequest: rpc.SegmentationServiceStub(self._channel).Segment,
            pb.SegmentTextRequest: rpc.SemanticSegmentationServiceStub(self._channel).SegmentText,
            pb.IndexRequest: rpc.RetrievalServiceStub(self._channel).Index,
            pb.SearchRequest: rpc.RetrievalServiceStub(self._channel).Search,
            pb.ListItemsRequest: rpc.RetrievalServiceStub(self._channel).ListItems,
            pb.EmbedRequest: rpc.BackboneServiceStub(self._channel).Embed,
        }
        self.acknowledged: set[str] = set()

    def kinds(self) -> dict[str, Callable[[int, float], Awaitable[bool]]]:
        return ({"backbone": self.embed} if self._backbone else {}) | {
            "classification": self.classify,
            "segmentation": self.segment,
            "semantic": self.semantic,
            "index": self.index,
            "search": self.search,
            "gateway": self.healthz,
        }

    async def close(self) -> None:
        await self._channel.close()
        await self._http.aclose()

    async def send(self, request: Message, seconds: float) -> Message:
        return await self._call[type(request)](request, timeout=seconds)

    async def embed(self, number: int, seconds: float) -> bool:
        outputs = [pb.CLIP_POOLED]
        request = pb.EmbedRequest(image=self._image(number), outputs=outputs, inline=True)
        (tensor,) = (await self.send(request, seconds)).tensors
        found_D = np.frombuffer(tensor.data, tensor.dtype).astype(np.float32)
        return bool(np.abs(found_D - self._picture(number).pooled_D).max() < 0.01)

    async def classify(self, number: int, seconds: float) -> bool:
        request = pb.ClassifyRequest(images=[self._image(number)], labels=LABELS)
        (result,) = (await self.send(request, seconds)).results
        expected = self._picture(number).probabilities
        return all(abs(expected[score.label] - score.score) < 0.02 for score in result.scores)

    async def segment(self, number: int, seconds: float) -> bool:
        point = pb.Point(x=POINT[0], y=POINT[1])
        request = pb.SegmentRequest(image=self._image(number), prompts=[pb.Prompt(points=[point])])
        (mask,) = (await self.send(request, seconds)).results[0].masks
        found_HW = decode_rle(mask.rle.counts, mask.rle.height, mask.rle.width)
        return _close(found_HW, self._picture(number).mask_HW)

    async def semantic(self, number: int, seconds: float) -> bool:
        request = pb.SegmentTextRequest(image=self._image(number), labels=LABELS)
        png = (await self.send(request, seconds)).label_map_png
        return _close(decode_label_map(png), self._picture(number).label_map_HW)

    async def index(self, number: int, seconds: float) -> bool:
        item = pb.IndexItem(id=f"written-{number}", image=self._image(number))
        reply = await self.send(pb.IndexRequest(collection=self._written, items=[item]), seconds)
        self.acknowledged.add(item.id)
        return bool(reply.indexed == 1)

    async def search(self, number: int, seconds: float) -> bool:
        request = pb.SearchRequest(collection=self._collection, image=self._image(number), top_k=1)
        (hit,) = (await self.send(request, seconds)).hits
        return hit.id == f"known-{number % len(self._pictures)}" and hit.score > 0.99

    async def healthz(self, number: int, seconds: float) -> bool:
        reply = await self._http.get("/healthz", timeout=seconds)
        reply.raise_for_status()
        return bool(reply.json() == {"status": "live"})

    async def index_known(self) -> None:
        """Index the images that ``search`` finds."""
        items = [
            pb.IndexItem(id=f"known-{i}", image=pb.Image(encoded=self._pictures[i].file))
            for i in range(len(self._pictures))
        ]
        reply = await self.send(pb.IndexRequest(collection=self._collection, items=items), 120)
        assert reply.indexed == len(items)

    async def lost(self) -> set[str]:
        """Return the acknowledged ids that the collection lacks."""
        found: set[str] = set()
        after = ""
        while self.acknowledged:
            request = pb.ListItemsRequest(collection=self._written, after_id=after, limit=1000)
            page = [item.id for item in (await self.send(request, 60)).items]
            if not page:
                break
            found, after = found | set(page), page[-1]
        return self.acknowledged - found

    @property
    def _written(self) -> str:
        return f"{self._collection}-written"

    def _picture(self, number: int) -> Picture:
        return self._pictures[number % len(self._pictures)]

    def _image(self, number: int) -> pb.Image:
        fresh = number // len(self._pictures) % 2 == 1
        return pb.Image(encoded=self._pictures.file(number % len(self._pictures), fresh))


@dataclass
class Load:
    """A load that runs inside ``async with``, and its record."""

    questions: Questions
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    fault_at: float = 0.0
    recovery_s: float = 0.0
    lost: int = 0
    attempt_s: float = ATTEMPT_S
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        await self.questions.index_known()
        for kind, ask in self.questions.kinds().items():
            self.attempts[kind] = []
            self._tasks.append(asyncio.create_task(self._caller(kind, ask)))
        await self.recovered()
        self.mark()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._tasks)
        with suppress(grpc.aio.AioRpcError):
            self.lost = len(await self.questions.lost())
        await self.questions.close()

    def mark(self) -> None:
        """Measure failures and recovery from now on."""
        self.fault_at = time.monotonic()

    async def recovered(self, within_s: float = PATIENT_S) -> None:
        """Wait until IN_A_ROW consecutive requests of every kind succeed.

        ``recovery_s`` is the time from the mark to the first answer after which nothing failed,
        for the slowest kind.
        """
        deadline = time.monotonic() + within_s
        while not all(map(self._answered, self.attempts)):
            assert time.monotonic() < deadline, f"failing after {within_s} s: {self.failures()}"
            await asyncio.sleep(0.05)
        self.recovery_s = max(map(self._first_good, self.attempts)) - self.fault_at

    def failures(self, ever: bool = False) -> dict[str, Counter[str]]:
        """Count failures since the mark, or since the start: kind → status → number."""
        since = 0 if ever else self.fault_at
        failed = {
            kind: Counter(a.code for a in attempts if a.done > since and a.code != "OK")
            for kind, attempts in self.attempts.items()
        }
        return {kind: codes for kind, codes in failed.items() if codes}

    def wrong(self) -> int:
        """Count wrong answers since the start."""
        return sum(a.code == "WRONG" for attempts in self.attempts.values() for a in attempts)

    def _answered(self, kind: str) -> bool:
        since = [a for a in self.attempts[kind] if a.sent >= self.fault_at]
        return len(since) >= IN_A_ROW and all(a.code == "OK" for a in since[-IN_A_ROW:])

    def _first_good(self, kind: str) -> float:
        good = self.fault_at
        for attempt in reversed(self.attempts[kind]):
            if attempt.code != "OK" or attempt.sent < self.fault_at:
                break
            good = attempt.done
        return good

    async def _caller(self, kind: str, ask: Callable[[int, float], Awaitable[bool]]) -> None:
        for number in count():
            while not self._stopped.is_set():
                sent = time.monotonic()
                code = await _outcome(ask(number, self.attempt_s))
                self.attempts[kind].append(Attempt(sent, time.monotonic(), code))
                if code in ("OK", "WRONG"):
                    break
                await asyncio.sleep(AGAIN_S)
            if self._stopped.is_set():
                return
            await asyncio.sleep(PACE_S)


async def _outcome(answer: Awaitable[bool]) -> str:
    try:
        return "OK" if await answer else "WRONG"
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except httpx.HTTPStatusError as error:
        return f"HTTP {error.response.status_code}"
    except httpx.HTTPError as error:
        return type(error).__name__
