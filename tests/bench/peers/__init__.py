"""Part ``peers``: other ways to serve the same encoder, in turns with ours. Every image is new, so
nobody's cache helps.
"""

from collections.abc import Iterator

import numpy as np

from tests.bench.bench import Bench
from tests.bench.lines import Line, seen
from tests.bench.load import Job, Outcome
from tests.bench.peers.server import Absent, Peer, serving
from tests.bench.peers.work import PATH
from tests.bench.service import running

PEERS = (
    Peer("LitServe", "with_litserve", "litserve>=0.2.19", form=True),
    Peer("BentoML", "with_bentoml", "bentoml>=1.4.40", form=True),
    Peer("mosec", "with_mosec", "mosec>=0.9.8"),
    Peer("FastAPI", "with_fastapi"),
    Peer("Ray Serve", "with_ray_serve"),
)
CLIENTS = (1, 8, 32)
ROUNDS = 2  # a start takes longer than these
WARM_UP_S = 15.0  # Serve's controller, once, and BentoML at first take much longer than ever after
Rounds = dict[int, list[Outcome]]  # by number of clients


def run(bench: Bench) -> Iterator[Line]:
    folder = bench.out / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    ours: dict[str, list[Rounds]] = {}
    for peer in PEERS:
        before = _ours(bench)
        for name, rounds in before.items():
            ours.setdefault(name, []).append(rounds)
        bench.log(f"  {peer.name}")
        try:
            with serving(peer, bench, folder) as address:
                job = Job("http", address, path=PATH, form=peer.form, seconds=bench.seconds)
                theirs = _lines(peer.name, [_rounds(bench, job)])
        except Absent as error:
            bench.log(f"    left out: {error}")
            continue
        yield from theirs.values()
        for name, rounds in before.items():
            yield from _ratios(peer.name, theirs, name, _lines(name, [rounds]))
    for name, turns in ours.items():
        yield from _lines(name, turns).values()


def _ours(bench: Bench) -> dict[str, Rounds]:
    """Before each peer, as a machine is not the same a quarter of an hour later."""
    with running(bench.directory) as service:
        jobs = {
            "ours": Job("grpc", service.grpc, seconds=bench.seconds),
            "ours over HTTP": Job("http", service.http, seconds=bench.seconds),
        }
        return {name: _rounds(bench, job) for name, job in jobs.items()}


def _rounds(bench: Bench, job: Job) -> Rounds:
    bench.load(job.of(clients=8, seconds=0.1 if bench.quick else WARM_UP_S))
    rounds: Rounds = {clients: [] for clients in CLIENTS}
    for _ in range(ROUNDS):
        for clients in CLIENTS:
            rounds[clients].append(bench.load(job.of(clients=clients)))
    return rounds


def _lines(name: str, turns: list[Rounds]) -> dict[str, Line]:
    """By what it is: the rates at each number of clients, and the latency of one."""
    lines = {}
    for clients in CLIENTS:
        outcomes = [outcome for rounds in turns for outcome in rounds[clients]]
        what = f"{clients} client{'s' if clients > 1 else ''}"
        facts = {"errors": sum(outcome.errors for outcome in outcomes)}
        facts["generator_cores"] = max(outcome.cpu_share for outcome in outcomes)
        rates = [outcome.rate for outcome in outcomes]
        lines[what] = Line(f"{name}, {what}", "/s", rates, True, facts=facts)
        if clients == 1:
            lines["p50"] = seen(f"{name}, 1 client: latency", [o.latencies_ms for o in outcomes])
    return lines


def _ratios(peer: str, theirs: dict[str, Line], name: str, ours: dict[str, Line]) -> Iterator[Line]:
    """Ours to each round of the peer's: one came a minute before the other."""
    for what, line in theirs.items():
        rounds = list(ours[what].median / np.asarray(line.rounds))
        if what == "p50":
            yield Line(f"p50: {name} / {peer}, 1 client", "×", rounds)
        else:
            yield Line(f"{name} / {peer}, {what}", "×", rounds, True)
