"""The load generator: a process of its own that is told jobs, one JSON line each, and answers each
with what it saw. It takes so little of the machine as it can, and says how much that was.

Closed loop: so many clients, each of which waits for its answer and asks again. Open loop: requests
at the times of a Poisson process, whether or not earlier ones have been answered; what waits to be
sent has already begun to wait, so that a slow service cannot hide behind a patient client.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from subprocess import PIPE, Popen
from typing import Any

import numpy as np

from tests.bench import traffic

CHANNELS = 8  # of an open loop
TIMEOUT_S = 120.0
PAUSE_S = 0.01  # after a refusal
Call = Callable[[int, int], Awaitable[None]]  # of a number and a client


@dataclass(frozen=True)
class Job:
    """``rate`` a second makes it an open loop; ``path`` is of a peer, sent only the file."""

    transport: str  # "grpc" or "http"
    address: str  # host:port
    kind: traffic.Kind = "embed"
    images: traffic.Images = "new"
    clients: int = 1
    seconds: float = 3.0
    warm_up_s: float = 0.5
    rate: float | None = None
    seed: int = 0
    path: str = ""
    form: bool = False  # with ``path``: in a form instead of bare

    def of(self, **changes: Any) -> "Job":
        return replace(self, **changes)


@dataclass
class Outcome:
    """What became of the requests that were made after the warm-up, and answers a second."""

    latencies_ms: list[float] = field(default_factory=list)
    rate: float = 0.0
    due: float = 0.0  # a second, of an open loop: a Poisson process has more or fewer than its rate
    answered: int = 0  # the warm-up's as well
    errors: int = 0
    error: str = ""
    cpu_share: float = 0.0  # cores that the generator itself took


@dataclass(frozen=True)
class _Answer:
    client: int
    since: float
    until: float
    counts: bool  # the warm-up's do not


@contextmanager
def generator() -> Iterator[Callable[[Job], Outcome]]:
    """The process, as a function."""
    command = [sys.executable, "-m", "tests.bench.load"]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(job: Job) -> Outcome:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            outcome = Outcome(**json.loads(process.stdout.readline()))
            if not outcome.latencies_ms:
                raise RuntimeError(f"nothing was answered: {job}: {outcome.error}")
            return outcome

        try:
            yield run
        finally:
            process.stdin.close()  # it ends with its last job


def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """The times of a Poisson process, in seconds from its begin, ascending."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=int(2 * rate * seconds) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def _arrivals(job: Job) -> np.ndarray:
    assert job.rate is not None
    return arrivals(job.rate, job.warm_up_s + job.seconds, job.seed)


async def measure(job: Job) -> Outcome:
    traffic.files()  # made now, not by the first request
    outcome, answers = Outcome(), list[_Answer]()
    async with _connected(job) as call:
        if job.images != "new" and not job.path:
            for number in range(len(traffic.files())):
                await call(-number - 1, 0)  # of a negative number the file is sent

        async def ask(number: int, client: int, since: float, counts: bool) -> None:
            try:
                await call(number, client)
            except Exception as error:  # whatever it was, it was not answered
                outcome.errors += 1
                outcome.error = str(error)[:300]
                await asyncio.sleep(PAUSE_S)
                return
            answers.append(_Answer(client, since, time.perf_counter(), counts))

        cpu, begin = time.process_time(), time.perf_counter()
        first, last = begin + job.warm_up_s, begin + job.warm_up_s + job.seconds
        await (_open(job, ask, begin) if job.rate else _closed(job, ask, first, last))
        outcome.cpu_share = (time.process_time() - cpu) / (time.perf_counter() - begin)
    counted = [answer for answer in answers if answer.counts]
    outcome.latencies_ms = [1000 * (answer.until - answer.since) for answer in counted]
    in_time = sum(first <= answer.until < last for answer in answers)
    outcome.answered = len(answers)
    outcome.rate = in_time / job.seconds if job.rate else _closed_rate(counted)
    if job.rate:
        outcome.due = np.count_nonzero(_arrivals(job) >= job.warm_up_s) / job.seconds
    return outcome


def _closed_rate(counted: Iterable[_Answer]) -> float:
    """The sum over the clients: each one's answers over the time that it waited for them.

    Answers come in batches; what lies in some span of time would depend on where it begins.
    """
    waited: dict[int, list[float]] = {}
    for answer in counted:
        waited.setdefault(answer.client, []).append(answer.until - answer.since)
    return sum(len(times) / sum(times) for times in waited.values())


async def _closed(job: Job, ask: Callable[..., Awaitable[None]], first: float, last: float) -> None:
    """Every client has at least one request that counts, and all of these meet the same load:
    nobody stops before the last one of them is answered.
    """
    without, waiting = set(range(job.clients)), set[int]()

    async def client(index: int) -> None:
        number = index
        while (now := time.perf_counter()) < last or without or waiting:
            counts = now >= first and (now < last or index in without)
            if counts:
                without.discard(index)
                waiting.add(index)
            await ask(number, index, now, counts)
            waiting.discard(index)
            number += job.clients

    await asyncio.gather(*map(client, range(job.clients)))


async def _open(job: Job, ask: Callable[..., Awaitable[None]], begin: float) -> None:
    async with asyncio.TaskGroup() as group:
        for number, at in enumerate(_arrivals(job)):
            await asyncio.sleep(begin + at - time.perf_counter())
            counts = at >= job.warm_up_s
            group.create_task(ask(number, number % CHANNELS, begin + at, counts))


@asynccontextmanager
async def _connected(job: Job) -> AsyncIterator[Call]:
    connect = _grpc if job.transport == "grpc" else _http
    async with connect(job, CHANNELS if job.rate else job.clients) as call:
        yield call


@asynccontextmanager
async def _grpc(job: Job, channels: int) -> AsyncIterator[Call]:
    """One connection a client, as clients on machines of their own have."""
    from grpc import aio

    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    options = [*limits, ("grpc.use_local_subchannel_pool", 1)]
    opened = [aio.insecure_channel(job.address, options) for _ in range(channels)]
    methods = [channel.unary_unary(traffic.METHODS[job.kind]) for channel in opened]

    async def call(number: int, client: int) -> None:
        images = job.images if number >= 0 else "file"
        request = traffic.message(job.kind, images, abs(number))
        await methods[client](request.SerializeToString(), timeout=TIMEOUT_S)

    try:
        yield call
    finally:
        await asyncio.gather(*(channel.close() for channel in opened))


@asynccontextmanager
async def _http(job: Job, connections: int) -> AsyncIterator[Call]:
    import aiohttp

    url = f"http://{job.address}{job.path or traffic.PATHS[job.kind]}"
    connector = aiohttp.TCPConnector(limit=connections)
    timeout = aiohttp.ClientTimeout(TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def call(number: int, client: int) -> None:
            kind, content = _content(job, number)
            async with session.post(url, data=content, headers={"content-type": kind}) as reply:
                answer = await reply.read()
                if reply.status != 200:
                    raise RuntimeError(f"{reply.status}: {answer[:200]!r}")

        yield call


def _content(job: Job, number: int) -> tuple[str, bytes]:
    if not job.path:
        images = job.images if number >= 0 else "file"
        return traffic.body(job.kind, images, abs(number))
    if job.form:
        return traffic.form(traffic.fresh(number), {})
    return "image/jpeg", traffic.fresh(number)


def main() -> None:
    async def answer() -> None:
        for line in sys.stdin:
            values: dict[str, Any] = json.loads(line)
            outcome = await measure(Job(**values))
            print(json.dumps(asdict(outcome)), flush=True)

    asyncio.run(answer())


if __name__ == "__main__":
    main()
