"""Part ``saturation``: the service with more clients than it can serve, beside the best loop that
does the same work without one, in turns.
"""

from tests.bench import bare
from tests.bench.bare import CLASSIFY_WAYS, CLICK_WAYS
from tests.bench.bench import Bench
from tests.bench.lines import Line, ratio

SATURATED = 32


def run(bench: Bench) -> list[Line]:
    return [
        *_beside_bare(bench, "classify", "new", CLASSIFY_WAYS),
        *_beside_bare(bench, "click", "key", CLICK_WAYS),
    ]


def _beside_bare(bench: Bench, kind: str, images: str, ways: list[bare.Way]) -> list[Line]:
    rates = bare.best(bench, kind, ways)
    way = next(iter(rates))
    served, looped, shares = [], [], []
    with bare.loop(bench, kind, way) as loop:
        for _ in range(bench.rounds):
            looped.append(loop(bench.seconds))
            outcome = bench.ask("grpc", kind, images, clients=SATURATED)
            served.append(outcome.rate)
            shares.append(outcome.cpu_share)
    facts = {"best": str(way), "all": {str(way): rate for way, rate in rates.items()}}
    loop_line = Line(f"bare loop, {kind} {images}", "/s", looped, True, facts=facts)
    generator = {"generator_cores": max(shares)}
    service_line = Line(f"saturated, {kind} {images}", "/s", served, True, facts=generator)
    both = ratio(f"saturated / bare loop, {kind} {images}", service_line, loop_line, True)
    return [loop_line, service_line, both]
