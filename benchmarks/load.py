"""The load generator, in a process of its own.

Each client waits for its answer before it sends the next request.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Literal, NamedTuple

import aiohttp

from benchmarks import traffic
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


class _Seen(NamedTuple):
    """A measured visit, and the number of its requests that were answered."""

    client: int
    answered: int
    seconds: float


@contextmanager
def generator() -> Iterator[Callable[[Job], Outcome]]:
    """Start the process; yields a function that runs a job in it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:

        def run(job: Job) -> Outcome:
            outcome = process.submit(_run, job).result()
            if not outcome.latencies_ms:
                raise RuntimeError(f"no request of {job} was answered: {outcome.error}")
            if outcome.errors:
                print(f"  {outcome.errors} errors, such as {outcome.error}", flush=True)
            return outcome

        yield run


def _run(job: Job) -> Outcome:
    traffic.photographs()  # reads the files before the first request
    return asyncio.run(measure(job))


async def measure(job: Job) -> Outcome:
    """Run the clients until each has at least one measured visit.

    No client stops before the last measured visit is over, so that all measured visits see the same
    load, unless there are no more visits.
    """
    outcome, seen, visits = Outcome(), list[_Seen](), _visits(job)
    unmeasured, measuring = set(range(job.clients)), set[int]()
    connector = aiohttp.TCPConnector(limit=job.clients)
    timeout = aiohttp.ClientTimeout(TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        if job.work in ("known", "click"):
            for number in range(4):
                await _send(session, job, Ask("classify", traffic.photograph(number)))
        first = time.perf_counter() + job.warm_up_s
        last = first + job.seconds

        async def client(index: int) -> None:
            while (begin := time.perf_counter()) < last or unmeasured or measuring:
                counts = begin >= first and (begin < last or index in unmeasured)
                visit = next(visits, None)
                if counts or visit is None:
                    unmeasured.discard(index)
                if visit is None:
                    return
                if counts:
                    measuring.add(index)
                answered = await _answered(session, job, visit, outcome)
                measuring.discard(index)
                if counts and answered:
                    seen.append(_Seen(index, answered, time.perf_counter() - begin))

        await asyncio.gather(*map(client, range(job.clients)))
    outcome.latencies_ms = [1000 * visit.seconds for visit in seen]
    outcome.rate = _rate(seen)
    return outcome


async def _answered(
    session: aiohttp.ClientSession, job: Job, visit: Visit, outcome: Outcome
) -> int:
    """Send the requests of a visit, note errors, and return how many were answered."""
    answered = 0
    for ask in visit:
        try:
            await _send(session, job, ask)
            answered += 1
        except Exception as error:  # any error counts as no answer
            outcome.errors += 1
            outcome.error = str(error)[:300]
            await asyncio.sleep(PAUSE_S)
    outcome.answered += answered
    return answered


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
    answered, waited = Counter[int](), defaultdict[int, float](float)
    for visit in seen:
        answered[visit.client] += visit.answered
        waited[visit.client] += visit.seconds
    return sum(count / waited[client] for client, count in answered.items())


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
