"""Part ``peers``: other ways to serve the same encoder, one after the other. Every image is
new, so nobody's cache helps.
"""

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
Rounds = dict[int, list[Outcome]]  # by number of clients


def run(bench: Bench) -> list[Line]:
    folder = bench.out / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    measured = _ours(bench)
    for peer in PEERS:
        bench.log(f"  {peer.name}")
        try:
            with serving(peer, bench, folder) as address:
                job = Job("http", address, path=PATH, form=peer.form, seconds=bench.seconds / 3)
                measured[peer.name] = _rounds(bench, job)
        except Absent as error:
            bench.log(f"    left out: {error}")
    lines = {name: _lines(name, rounds) for name, rounds in measured.items()}
    flat = [line for pair in lines.values() for line in pair.values()]
    return [*flat, *(line for peer in PEERS if peer.name in lines for line in _ratios(peer, lines))]


def _ours(bench: Bench) -> dict[str, Rounds]:
    with running(bench.directory) as service:
        jobs = {
            "ours": Job("grpc", service.grpc, seconds=bench.seconds / 3),
            "ours over HTTP": Job("http", service.http, seconds=bench.seconds / 3),
        }
        return {name: _rounds(bench, job) for name, job in jobs.items()}


def _rounds(bench: Bench, job: Job) -> Rounds:
    rounds: Rounds = {clients: [] for clients in CLIENTS}
    for _ in range(ROUNDS):
        for clients in CLIENTS:
            rounds[clients].append(bench.load(job.of(clients=clients)))
    return rounds


def _lines(name: str, rounds: Rounds) -> dict[str, Line]:
    """By what it is: the rates at each number of clients, and the latency of one."""
    lines = {}
    for clients, outcomes in rounds.items():
        what = f"{clients} client{'s' if clients > 1 else ''}"
        facts = {"errors": sum(outcome.errors for outcome in outcomes)}
        facts["generator_cores"] = max(outcome.cpu_share for outcome in outcomes)
        rates = [outcome.rate for outcome in outcomes]
        lines[what] = Line(f"{name}, {what}", "/s", rates, True, facts=facts)
    lines["p50"] = seen(f"{name}, 1 client: latency", [o.latencies_ms for o in rounds[1]])
    return lines


def _ratios(peer: Peer, lines: dict[str, dict[str, Line]]) -> list[Line]:
    """Ours to each round of the peer's: they were not measured at the same time."""
    ratios = []
    for ours in ("ours", "ours over HTTP"):
        for what in ("1 client", "8 clients", "32 clients", "p50"):
            best, theirs = lines[ours][what].median, lines[peer.name][what]
            latency = what == "p50"
            name = (
                f"p50: {ours} / {peer.name}, 1 client"
                if latency
                else f"{ours} / {peer.name}, {what}"
            )
            rounds = list(best / np.asarray(theirs.rounds))
            ratios.append(Line(name, "×", rounds, not latency))
    return ratios
