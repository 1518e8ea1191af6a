"""Part ``open-loop``: requests that come when they come (Poisson), more and more of them, until the
service keeps up no longer. The knee is the last rate at which it did.
"""

from itertools import takewhile

from tests.bench.bench import Bench
from tests.bench.lines import Line, seen
from tests.bench.load import Outcome

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)  # of what 32 waiting clients get
TRAFFIC = [("classify", "new"), ("click", "key")]
SLOWER = 5.0  # times the latency of the lightest load: the knee is behind
ANSWERED = 0.9  # of what was due: the same
LENGTH = 5  # of a rate, in rounds of what else is measured: its 99th percentile is looked at


def run(bench: Bench) -> list[Line]:
    return [line for kind, images in TRAFFIC for line in _sweep(bench, kind, images)]


def _sweep(bench: Bench, kind: str, images: str) -> list[Line]:
    most = bench.ask("grpc", kind, images, clients=32).rate
    outcomes = {}
    for share in SHARES:
        rate = share * most
        bench.log(f"  {kind} {images}, {rate:.1f}/s")
        outcomes[rate] = bench.ask("grpc", kind, images, rate=rate, seconds=LENGTH * bench.seconds)
    return [*_curve(f"{kind} {images}", outcomes), _knee(f"{kind} {images}", outcomes)]


def _curve(name: str, outcomes: dict[float, Outcome]) -> list[Line]:
    lines = []
    for number, (rate, outcome) in enumerate(outcomes.items()):
        line = seen(
            f"open loop, {name}, {SHARES[number]:.0%} of saturation", [outcome.latencies_ms]
        )
        line.facts.update(rate=rate, due=outcome.due, answered=outcome.rate, errors=outcome.errors)
        lines.append(line)
    return lines


def _knee(name: str, outcomes: dict[float, Outcome]) -> Line:
    return Line(f"open loop, {name}: knee", "/s", [knee(outcomes)], True)


def knee(outcomes: dict[float, Outcome]) -> float:
    """The last rate, ascending, at which the service kept up; 0 where there is none."""
    if not outcomes:
        return 0.0
    lightest = seen("", [next(iter(outcomes.values())).latencies_ms]).median
    kept = takewhile(lambda item: _keeps_up(item[1], SLOWER * lightest), outcomes.items())
    return max((rate for rate, _ in kept), default=0.0)


def _keeps_up(outcome: Outcome, most_ms: float) -> bool:
    return (
        outcome.errors == 0
        and outcome.rate >= ANSWERED * outcome.due
        and seen("", [outcome.latencies_ms]).median <= most_ms
    )
