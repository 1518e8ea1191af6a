"""Part ``latency``: one client, and what the service adds to the library's own call."""

import time
from collections.abc import Callable

from samclip_core import Prompt
from tests.bench import traffic
from tests.bench.bench import Bench
from tests.bench.lines import Line, difference, ratio, seen

ASKED = [
    ("grpc", "classify", "new"),
    ("grpc", "classify", "file"),
    ("grpc", "classify", "key"),
    ("grpc", "click", "new"),
    ("grpc", "click", "key"),
    ("grpc", "semantic", "key"),
    ("http", "classify", "new"),
    ("http", "classify", "key"),
    ("http", "click", "key"),
]
WORDS = {"new": "a new image", "file": "a known file", "key": "a known key"}


def run(bench: Bench) -> list[Line]:
    library = _library(bench)
    samples: dict[str, list[list[float]]] = {}
    for number in range(bench.rounds + 1):
        for name, call in library.items():
            samples.setdefault(name, []).append(_calls(call, bench.seconds / 5, number))
        for transport, kind, images in ASKED:
            seconds = bench.seconds / (2 if images == "new" else 4)
            outcome = bench.ask(transport, kind, images, seconds=seconds, warm_up_s=0.2)
            name = f"{transport} {kind}, {WORDS[images]}"
            samples.setdefault(name, []).append(outcome.latencies_ms)
    lines = {name: seen(name, rounds[1:]) for name, rounds in samples.items()}  # first: warm-up
    return [*lines.values(), *_comparisons(lines)]


def _library(bench: Bench) -> dict[str, Callable[[int], object]]:
    """The same questions in this process; of a known image it holds the features."""
    model = bench.model
    features = [model.encode(file) for file in traffic.files()]

    def click(number: int) -> list[Prompt]:
        return [Prompt(points=(traffic.point(number),))]

    return {
        "library classify, a new image": lambda i: model.classify(traffic.known(i), traffic.LABELS),
        "library classify, a known image": lambda i: model.classify(
            features[i % 4], traffic.LABELS
        ),
        "library click, a new image": lambda i: model.segment(traffic.known(i), click(i), False),
        "library click, a known image": lambda i: model.segment(features[i % 4], click(i), False),
        "library semantic, a known image": lambda i: model.segment_text(
            features[i % 4], traffic.LABELS
        ),
    }


def _calls(call: Callable[[int], object], seconds: float, first: int) -> list[float]:
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < ends:
        call(first + len(taken))
        taken.append(1000 * (time.perf_counter() - begin))
    return taken


def _comparisons(lines: dict[str, Line]) -> list[Line]:
    known = lines["library classify, a known image"]
    new, click = lines["library classify, a new image"], lines["library click, a known image"]
    tails = [
        Line(f"{name}: p99 / p50", "×", [(lines[name].p99 or 0) / lines[name].median])
        for name in ("grpc classify, a new image", "grpc classify, a known key")
    ]
    return [
        difference("added to a new image", lines["grpc classify, a new image"], new),
        difference("added to a known key", lines["grpc classify, a known key"], known),
        difference("added to a known file", lines["grpc classify, a known file"], known),
        difference("added to a click", lines["grpc click, a known key"], click),
        *tails,
        ratio(
            "HTTP / gRPC, a new image",
            lines["http classify, a new image"],
            lines["grpc classify, a new image"],
        ),
        ratio(
            "HTTP / gRPC, a click",
            lines["http click, a known key"],
            lines["grpc click, a known key"],
        ),
    ]
