"""Part ``plan``: the simulation that ``samclip plan`` is checked against, beside a real run.

It takes the figures that the other parts have measured, and is asked what they did not: how many
answers clients get, and how long they take when requests come at random.
"""

import numpy as np

from services.plan import Costs, PlanError
from tests.bench import costs, simulation
from tests.bench.bench import Bench
from tests.bench.lines import Line
from tests.bench.report import Report

LOADS = (0.4, 0.6)  # of saturation, by new images
SIMULATED_S = 600.0


def run(bench: Bench) -> list[Line]:
    try:
        measured = Costs.of(costs.of(Report({}, dict(bench.done), dict(bench.facts))))
    except PlanError as error:
        bench.log(f"  left out: {error}")
        return []
    pairs = _saturated(bench, measured) | _at_random(bench, measured)
    lines, errors = [], []
    for name, (unit, simulated, real) in pairs.items():
        more = unit == "/s"
        lines += [
            Line(f"{name}, simulated", unit, [simulated], more),
            Line(f"{name}, real", unit, real, more),
        ]
        errors.append(100 * abs(simulated / float(np.median(real)) - 1))
    return [*lines, Line("simulation: largest error", "%", [max(errors)])]


Pairs = dict[str, tuple[str, float, list[float]]]


def _saturated(bench: Bench, measured: Costs) -> Pairs:
    pairs: Pairs = {}
    for clients in (1, 8, 32):
        for kind, question, images in (("new", "classify", "new"), ("click", "click", "key")):
            rounds = [
                bench.ask("grpc", question, images, clients=clients)
                for _ in range(2 if bench.quick else 3)
            ]
            simulated = simulation.closed(measured, clients, SIMULATED_S / 10, kind)
            name = f"{kind}, {clients} client{'s' if clients > 1 else ''}"
            pairs[name] = ("/s", simulated, [outcome.rate for outcome in rounds])
    return pairs


def _at_random(bench: Bench, measured: Costs) -> Pairs:
    pairs: Pairs = {}
    for share in LOADS:
        rate = share * simulation.closed(measured, 32, SIMULATED_S / 10)
        real = [
            bench.ask("grpc", "classify", "new", rate=rate, seconds=2 * bench.seconds, seed=seed)
            for seed in range(bench.rounds)
        ]
        machine = simulation.open_loop(measured, rate, 0.0, SIMULATED_S)
        means = [float(np.mean(outcome.latencies_ms)) for outcome in real]
        simulated = 1000 * float(np.mean(machine.new_s))
        pairs[f"new at {share:.0%} of saturation: mean latency"] = ("ms", simulated, means)
    return pairs
