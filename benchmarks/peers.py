"""Part ``peers``: our service and other servers in turns, each alone on the machine.

*All new*: no image twice. *A working day*: images drawn by Zipf's law (1.2) from 1,000, with a cold
cache at the start; per visit one classification, three clicks, one text search. ``servers.work``
is a peer's work, in eager PyTorch as its documentation suggests and with our library inside.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from benchmarks import traffic
from benchmarks.bench import Bench
from benchmarks.lines import Line, ratio
from benchmarks.load import Job, Outcome
from benchmarks.servers.server import Absent, Peer, serving
from benchmarks.service import running

PEERS = (
    Peer("LitServe", "with_litserve", "litserve>=0.2.19", takes="form"),
    Peer("mosec", "with_mosec", "mosec>=0.9.8"),
    Peer("FastAPI with a batcher", "with_fastapi"),
)
WORKS = {"Documented": "as documented", "Library": "our library inside"}
TABLE, P50 = "requests per second", "p50 of a visit"
OURS, BEST = "ours", "ours / best peer as documented"
ALL_NEW = {"all new, 1 client": 1, "all new, 8 clients": 8, "all new, 32 clients": 32}
DAY, DAY_CLIENTS, VISITS = "a working day, 8 clients", 8, 500
WARM_UP_S = 6.0  # Serve's controller uses more CPU at first
Turn = dict[str, Outcome]  # by column


def run(bench: Bench) -> list[Line]:
    turns: dict[str, list[Turn]] = defaultdict(list)
    for number in range(bench.rounds):
        bench.log(f"round {number + 1}: {OURS}")
        with running(bench.directory) as service:
            service.post("/index", "application/json", traffic.collection())  # for searches
            turns[OURS].append(_measure(bench, Job(service.http)))
            ask = traffic.Ask("classify", traffic.photograph(0))
            results = service.post(*traffic.to_service(ask))["results"]
            scores = {score["label"]: score["score"] for score in results}  # to check peers
        for peer in PEERS:
            for work, words in WORKS.items():
                name = f"{peer.name}, {words}"
                bench.log(f"round {number + 1}: {name}")
                try:
                    with serving(peer, work, bench, scores) as address:
                        turns[name].append(_measure(bench, Job(address, peer=peer.takes)))
                except Absent as error:
                    bench.log(f"skipped: {error}")
    complete = {name: rounds for name, rounds in turns.items() if len(rounds) == bench.rounds}
    return [*_lines(complete)]


def _measure(bench: Bench, job: Job) -> Turn:
    """Measure each load. Only ours runs the whole day, as its cache fills; peers run for a time."""
    bench.load(replace(job, clients=8, seconds=0.5 if bench.quick else WARM_UP_S))
    turn = {
        column: bench.load(replace(job, clients=clients, seconds=bench.seconds))
        for column, clients in ALL_NEW.items()
    }
    visits = VISITS // 10 if bench.quick else VISITS
    seconds = 4 * bench.seconds if job.peer else float("inf")
    day = Job(job.address, "day", DAY_CLIENTS, seconds, warm_up_s=0, visits=visits, peer=job.peer)
    return turn | {DAY: bench.load(day)}


def _lines(turns: dict[str, list[Turn]]) -> Iterator[Line]:
    """Yield rates and latencies, then our ratio to each peer and to the best of a round."""
    rates: dict[tuple[str, str], Line] = {}
    columns = (*ALL_NEW, DAY)
    for column in columns:
        for name, rounds in turns.items():
            outcomes = [turn[column] for turn in rounds]
            rates[name, column] = Line(TABLE, name, column, "/s", [o.rate for o in outcomes])
            yield rates[name, column]
            medians = [statistics.median(o.latencies_ms) for o in outcomes]
            yield Line(P50, name, column, "ms", medians)
    for column in columns:
        ours, documented = rates[OURS, column], list[Line]()
        for name in turns:
            if name != OURS:
                yield ratio(f"{OURS} / {name}", column, ours, rates[name, column])
            if name.endswith(WORKS["Documented"]):
                documented.append(rates[name, column])
        if documented:
            best = [
                max(rounds) for rounds in zip(*(line.rounds for line in documented), strict=True)
            ]
            yield ratio(BEST, column, ours, Line(TABLE, "best peer", column, "/s", best))
