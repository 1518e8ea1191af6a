"""What the project wants to reach, each as one line of the results and a bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.lines import Line

Parts = Mapping[str, Sequence[Line]]
PEERS = ("LitServe", "BentoML", "mosec", "FastAPI", "Ray Serve")


@dataclass(frozen=True)
class Goal:
    """``at_most`` a bound, or at least it; both in the unit of the line."""

    what: str
    part: str
    line: str
    bound: float
    at_most: bool = False

    def reached(self, line: Line) -> bool:
        return line.median <= self.bound if self.at_most else line.median >= self.bound


def _peer_goals() -> list[Goal]:
    goals = []
    for peer in PEERS:
        for clients in (8, 32):
            line = f"ours / {peer}, {clients} clients"
            goals.append(Goal(f"throughput, {line}", "peers", line, 1.0))
        line = f"p50: ours / {peer}, 1 client"
        goals.append(Goal(line, "peers", line, 1.0, True))
    return goals


GOALS = [
    Goal(
        "`vit-b` encoder, bf16, of the bf16 products",
        "vit-b",
        "ours, bfloat16: share of products",
        70,
    ),
    Goal(
        "`vit-b` encoder, bf16, against segment_anything fp32",
        "vit-b",
        "segment_anything float32 / ours bfloat16",
        4,
    ),
    Goal(
        "`vit-b` encoder, fp32, of the fp32 products",
        "vit-b",
        "ours, float32: share of products",
        60,
    ),
    Goal(
        "GPU: `vit-b`, bf16, batch 8, of the products",
        "gpu",
        "gpu vit-b bfloat16, batch 8: share of products",
        50,
    ),
    Goal(
        "GPU: against segment_anything fp32",
        "gpu",
        "gpu ours / segment_anything float32, batch 8",
        7.6,
    ),
    Goal(
        "saturated by new images, of the bare loop",
        "saturation",
        "saturated / bare loop, classify new",
        0.95,
    ),
    Goal("added to a new image, one client", "latency", "added to a new image", 5, True),
    Goal("added to a known image, one client", "latency", "added to a known key", 2.5, True),
    Goal(
        "p99 / p50, a new image, one client",
        "latency",
        "grpc classify, a new image: p99 / p50",
        2,
        True,
    ),
    Goal(
        "p99 / p50, a known image, one client",
        "latency",
        "grpc classify, a known key: p99 / p50",
        2,
        True,
    ),
    Goal("a click over the bare mask decoder", "latency", "added to a click", 2.5, True),
    *_peer_goals(),
    Goal("two services on two cores / one on one", "replicas", "two services / one", 1.7),
    Goal(
        "RLE of 64 masks of 1024², part of the request",
        "masks",
        "encoding / request, 64 masks",
        0.1,
        True,
    ),
    Goal("ready after the start", "footprint", "until ready", 15, True),
    Goal("memory of the idle service", "footprint", "memory, idle (PSS)", 3.0, True),
    Goal(
        "clicks at saturation, of the bare mask decoder",
        "saturation",
        "saturated / bare loop, click key",
        0.85,
    ),
    Goal("clicks by key / on new images, `vit-b`", "hits", "known keys / new images, vit-b", 50),
    *(
        Goal(
            f"new images, cached in {where} / not cached",
            "cache",
            f"cached in {where} / not cached, new images",
            0.97,
        )
        for where in ("memory", "memory and Redis")
    ),
    Goal("20,000 new images: rate at the end", "unique", "rate, last fifth / first fifth", 0.97),
    Goal(
        "20,000 new images: memory at the end",
        "unique",
        "memory, last fifth / first fifth",
        1.02,
        True,
    ),
    Goal("plan's simulation against the real run", "plan", "simulation: largest error", 15, True),
]


def judge(parts: Parts) -> list[tuple[Goal, Line | None]]:
    """Each goal with its line, None where it was not measured."""
    found = {(part, line.name): line for part, lines in parts.items() for line in lines}
    return [(goal, found.get((goal.part, goal.line))) for goal in GOALS]
