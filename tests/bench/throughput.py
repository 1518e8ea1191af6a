"""Part ``throughput``: 1, 8 and 32 clients that wait for their answers before they ask again."""

import time

from tests.bench.bench import Bench
from tests.bench.lines import Line, seen
from tests.bench.load import Outcome
from tests.bench.service import mean_ms

CLIENTS = (1, 8, 32)
TRAFFIC = [
    ("classify", "new"),
    ("classify", "file"),
    ("classify", "key"),
    ("click", "key"),
    ("semantic", "key"),
]


def run(bench: Bench) -> list[Line]:
    lines = [unasked(bench)]
    for kind, images in TRAFFIC:
        for transport, clients in [*(("grpc", c) for c in CLIENTS), ("http", 8)]:
            lines += under(bench, transport, kind, images, clients)
    return lines


def name_of(transport: str, kind: str, images: str, clients: int) -> str:
    return f"{transport} {kind} {images}, {clients} client{'s' if clients > 1 else ''}"


def unasked(bench: Bench) -> Line:
    """Cores that the service takes while nobody asks it anything."""
    taken = []
    for _ in range(bench.rounds):
        cpu, begin = bench.service.cpu_seconds(), time.perf_counter()
        time.sleep(bench.seconds / 3)
        taken.append((bench.service.cpu_seconds() - cpu) / (time.perf_counter() - begin))
    return Line("nobody asks", "cores", taken)


def under(bench: Bench, transport: str, kind: str, images: str, clients: int) -> list[Line]:
    """Answers a second, their latency, and what the service spent on each."""
    name = name_of(transport, kind, images, clients)
    bench.log(f"  {name}")
    rounds: list[Outcome] = []
    cpu, stages = bench.service.cpu_seconds(), bench.service.stages()
    answered = 0
    for number in range(2 if bench.quick else 3):
        outcome = bench.ask(
            transport, kind, images, clients=clients, seconds=bench.seconds / 3, seed=number
        )
        rounds.append(outcome)
        answered += outcome.answered
    spent_ms = 1000 * (bench.service.cpu_seconds() - cpu) / answered
    facts = {
        "generator_cores": max(outcome.cpu_share for outcome in rounds),
        "errors": sum(outcome.errors for outcome in rounds),
        "cpu_ms": spent_ms,  # of all processes of the service, an answer
        "stages_ms": mean_ms(stages, bench.service.stages()),
    }
    rates = [outcome.rate for outcome in rounds]
    latency = seen(f"{name}: latency", [outcome.latencies_ms for outcome in rounds])
    return [Line(name, "/s", rates, True, facts=facts), latency]
