"""The load generator: a separate process that reads jobs and writes outcomes as lines of JSON.

Each client waits for its answer before it sends the next request.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal

import aiohttp

from benchmarks import traffic, worker
from benchmarks.traffic import Ask, Visit

TIMEOUT_S = 120.0
PAUSE_S = 0.01  # after an error
Work = Literal["new", "known", "click", "day"]


@dataclass(frozen=True)
class Job:
    """A load for ``seconds``, or until ``visits`` visits of a working day are over."""

    address: str  # host:port
    work: Work = "new"
    clients: int = 1
    seconds: float = 3.0
    warm_up_s: float = 0.5
    visits: int = 0
    peer: Literal["", "form", "bytes"] = ""  # how a peer receives a file; empty: our service


@dataclass
class Outcome:
    """The outcome of a job; latencies (per visit) and ``rate`` (requests/s) are without warm-up."""

    latencies_ms: list[float] = field(default_factory=list)
    rate: float = 0.0
    answered: int = 0  # requests, with those of the warm-up
    errors: int = 0
    error: str = ""


@dataclass(frozen=True)
class _Seen:
    """A measured visit, and the number of its requests that were answered."""

    client: int
    answered: int
    seconds: float


@contextmanager
def generator() -> Iterator[Callable[[Job], Outcome]]:
    """Start the process; yields a function that runs a job in it."""
    with worker.running([sys.executable, "-m", "benchmarks.load"]) as ask:

        def run(job: Job) -> Outcome:
            outcome = Outcome(**ask(asdict(job)))
            if not outcome.latencies_ms:
                raise RuntimeError(f"no request of {job} was answered: {outcome.error}")
            if outcome.errors:
                print(f"  {outcome.errors} errors, such as {outcome.error}", flush=True)
            return outcome

        yield run


async def measure(job: Job) -> Outcome:
    outcome, seen = Outcome(), list[_Seen]()
    connector = aiohttp.TCPConnector(limit=job.clients)
    timeout = aiohttp.ClientTimeout(TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        if job.work in ("known", "click"):
            for number in range(4):
                await _send(session, job, Ask("classify", traffic.photograph(number)))

        async def visit(asks: Visit, client: int, counts: bool) -> None:
            begin, answered = time.perf_counter(), 0
            for ask in asks:
                try:
                    await _send(session, job, ask)
                    answered += 1
                except Exception as error:  # any error counts as no answer
                    outcome.errors += 1
                    outcome.error = str(error)[:300]
                    await asyncio.sleep(PAUSE_S)
            outcome.answered += answered
            if counts and answered:
                seen.append(_Seen(client, answered, time.perf_counter() - begin))

        await _clients(job, _visits(job), visit)
    outcome.latencies_ms = [1000 * one.seconds for one in seen]
    outcome.rate = _rate(seen)
    return outcome


def _visits(job: Job) -> Iterator[Visit]:
    if job.work == "day":
        return traffic.working_day(job.visits)
    if job.work == "new":
        return traffic.all_new()
    return traffic.again("classify" if job.work == "known" else "click")


def _rate(seen: Iterable[_Seen]) -> float:
    """Return the sum over clients of answers per second of waiting.

    Answers come in batches, so that a count in a span of time would depend on where it begins.
    """
    of_client: dict[int, list[_Seen]] = {}
    for one in seen:
        of_client.setdefault(one.client, []).append(one)
    return sum(
        sum(one.answered for one in visits) / sum(one.seconds for one in visits)
        for visits in of_client.values()
    )


async def _clients(
    job: Job, visits: Iterator[Visit], visit: Callable[[Visit, int, bool], Awaitable[None]]
) -> None:
    """Run the clients until each has at least one measured visit.

    No client stops before the last measured visit is over, so that all measured visits see the same
    load, unless there are no more visits.
    """
    first = time.perf_counter() + job.warm_up_s
    last = first + job.seconds
    unmeasured, measuring = set(range(job.clients)), set[int]()

    async def client(index: int) -> None:
        while (now := time.perf_counter()) < last or unmeasured or measuring:
            asks = next(visits, None)
            if asks is None:
                unmeasured.discard(index)
                return
            counts = now >= first and (now < last or index in unmeasured)
            if counts:
                unmeasured.discard(index)
                measuring.add(index)
            await visit(asks, index, counts)
            measuring.discard(index)

    await asyncio.gather(*map(client, range(job.clients)))


async def _send(session: aiohttp.ClientSession, job: Job, ask: Ask) -> None:
    if job.peer:
        path, (kind, body) = "/ask", traffic.to_peer(ask, job.peer == "form")
    else:
        path, kind, body = traffic.to_service(ask)
    url = f"http://{job.address}{path}"
    async with session.post(url, data=body, headers={"content-type": kind}) as reply:
        answer = await reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {answer[:200]!r}")


def main() -> None:
    async def answer() -> None:
        traffic.photographs()  # reads the files before the first request
        for line in sys.stdin:
            outcome = await measure(Job(**json.loads(line)))
            print(json.dumps(asdict(outcome)), flush=True)

    asyncio.run(answer())


if __name__ == "__main__":
    main()
