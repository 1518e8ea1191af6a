"""Part ``plan``: the simulation that ``samclip plan`` is checked against, beside a real run.

In every round what the pieces cost is measured again, as the machine drifts by more than is looked
for; the real run is asked what the simulation tells from that: how many answers clients get, and
how long they take when requests come at random.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain

import numpy as np

from services.plan import Costs
from tests.bench import costs, machine, model, simulation, throughput
from tests.bench.bench import Bench
from tests.bench.lines import Line
from tests.bench.report import Report

LOADS = (0.4, 0.6)  # of saturation, by new images
SIMULATED_S = 600.0
KINDS = {"new": ("classify", "new"), "click": ("click", "key")}
NOT_SIMULATED = dict.fromkeys(("service_bytes", "image_bytes_in_redis", "redis_bytes_per_s"), 0.0)
Pair = tuple[str, str, float, float]  # what, its unit, simulated, real


def run(bench: Bench) -> list[Line]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for seed in range(2 if bench.quick else 3):
        measured = _costs(bench)
        pairs = chain(_saturated(bench, measured), _at_random(bench, measured, seed))
        for name, unit, simulated, real in pairs:
            found[name, unit].append((simulated, real))
    lines, errors = [], []
    for (name, unit), rounds in found.items():
        both = [
            Line(f"{name}, {what}", unit, values, unit == "/s")
            for what, values in zip(("simulated", "real"), zip(*rounds, strict=True), strict=True)
        ]
        errors.append(100 * abs(both[0].median / both[1].median - 1))
        lines += both
    return [*lines, Line("simulation: largest error", "%", [max(errors)])]


def _costs(bench: Bench) -> Costs:
    """Of these minutes."""
    bench.log("  what the pieces cost")
    asked = [throughput.unasked(bench)]
    for kind, images in KINDS.values():
        for clients in (1, 32):
            asked += throughput.under(bench, "grpc", kind, images, clients)
    asked += throughput.under(bench, "grpc", "classify", "key", 32)
    measured = {"model": [*model.pieces(bench, 1).values()], "throughput": asked}
    facts = {"throughput": {"machine": machine.facts()}}
    return Costs.of(NOT_SIMULATED | costs.of(Report({}, measured, facts)))


def _saturated(bench: Bench, measured: Costs) -> Iterator[Pair]:
    for clients in (1, 8, 32):
        for kind, (question, images) in KINDS.items():
            real = bench.ask("grpc", question, images, clients=clients).rate
            simulated = simulation.closed(measured, clients, SIMULATED_S / 10, kind)
            yield f"{kind}, {clients} client{'s' if clients > 1 else ''}", "/s", simulated, real


def _at_random(bench: Bench, measured: Costs, seed: int) -> Iterator[Pair]:
    most = simulation.closed(measured, 32, SIMULATED_S / 10)
    for share in LOADS:
        load = {"rate": share * most, "seconds": 4 * bench.seconds, "seed": seed}
        outcome = bench.ask("grpc", "classify", "new", **load)
        real = float(np.mean(outcome.latencies_ms))
        new_s = simulation.open_loop(measured, share * most, 0.0, SIMULATED_S).new_s
        simulated = 1000 * float(np.mean(new_s))
        yield f"new at {share:.0%} of saturation: mean latency", "ms", simulated, real
