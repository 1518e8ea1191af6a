"""The load generator: a process of its own that gets jobs, one line of JSON each, and answers each
with its outcome. Every client waits for its answer before it asks again.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from subprocess import PIPE, Popen
from typing import Any, Literal

import aiohttp

from benchmarks import traffic
from benchmarks.traffic import Ask, Visit

TIMEOUT_S = 120.0
PAUSE_S = 0.01  # after a refusal
Work = Literal["new", "known", "click", "day"]


@dataclass(frozen=True)
class Job:
    """A load for ``seconds``, or until so many ``visits`` of a working day are over."""

    address: str  # host:port
    work: Work = "new"
    clients: int = 1
    seconds: float = 3.0
    warm_up_s: float = 0.5
    visits: int = 0
    peer: Literal["", "form", "bytes"] = ""  # how a peer takes a file; empty: our service

    def of(self, **changes: Any) -> "Job":
        return replace(self, **changes)


@dataclass
class Outcome:
    """Visits after the warm-up; ``rate`` is of requests per second."""

    latencies_ms: list[float] = field(default_factory=list)
    rate: float = 0.0
    answered: int = 0  # requests, the warm-up's too
    errors: int = 0
    error: str = ""


@dataclass(frozen=True)
class _Seen:
    """One visit: how many requests were answered in it."""

    client: int
    answered: int
    seconds: float


@contextmanager
def generator() -> Iterator[Callable[[Job], Outcome]]:
    """The process, as a function."""
    command = [sys.executable, "-m", "benchmarks.load"]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(job: Job) -> Outcome:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            outcome = Outcome(**json.loads(process.stdout.readline()))
            if not outcome.latencies_ms:
                raise RuntimeError(f"nothing was answered: {job}: {outcome.error}")
            if outcome.errors:
                print(f"  {outcome.errors} errors, such as {outcome.error}", flush=True)
            return outcome

        try:
            yield run
        finally:
            process.stdin.close()  # it ends with its last job


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
                except Exception as error:  # of any kind: it was not answered
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
    """The sum over the clients: each one's answers over the time that it waited for them.

    Answers come in batches; a count within a span of time would depend on where it begins.
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
    """Every client has at least one visit that counts, and all of these meet the same load: no
    client stops before the last one of them is over, unless there are no more visits.
    """
    first = time.perf_counter() + job.warm_up_s
    last = first + job.seconds
    without, waiting = set(range(job.clients)), set[int]()

    async def client(index: int) -> None:
        while (now := time.perf_counter()) < last or without or waiting:
            asks = next(visits, None)
            if asks is None:
                without.discard(index)
                return
            counts = now >= first and (now < last or index in without)
            if counts:
                without.discard(index)
                waiting.add(index)
            await visit(asks, index, counts)
            waiting.discard(index)

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
        traffic.photographs()  # read now, not by the first request
        for line in sys.stdin:
            outcome = await measure(Job(**json.loads(line)))
            print(json.dumps(asdict(outcome)), flush=True)

    asyncio.run(answer())


if __name__ == "__main__":
    main()
