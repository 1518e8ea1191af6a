"""Part ``hits``: clicks at SAM's own size, with random weights, on pictures that nobody has seen
and on pictures whose embeddings are held. Seconds a miss, so few of them.
"""

import tempfile
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.lines import Line, ratio
from tests.bench.load import Job, Outcome
from tests.bench.service import running
from tests.bench.vit_b import make_checkpoint

CLIENTS = 8


def run(bench: Bench) -> list[Line]:
    """As many clicks a second of as many clients, in turns."""
    hits, misses = list[Outcome](), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
        directory = make_checkpoint(Path(folder) / "vit-b")
        with running(directory) as service:
            job = Job("grpc", service.grpc, "click", clients=CLIENTS, seconds=bench.seconds)
            for number in range(2 if bench.quick else 3):
                bench.log(f"  round {number}")
                misses.append(bench.load(job.of(images="new", warm_up_s=0.0)))
                hits.append(bench.load(job.of(images="key")))
    rates = [
        Line(f"clicks, vit-b, {name}", "/s", [outcome.rate for outcome in outcomes], True)
        for name, outcomes in (("new images", misses), ("known keys", hits))
    ]
    return [*rates, ratio("known keys / new images, vit-b", rates[1], rates[0], True)]
