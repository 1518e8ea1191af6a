"""Part ``unique``: 20,000 files that nobody has seen, with both tiers of the cache full all the
time: whether the service gets slower, or larger.
"""

import shutil
import tempfile
from pathlib import Path

from tests import redis_server
from tests.bench.bench import Bench
from tests.bench.cache import SMALL
from tests.bench.lines import Line
from tests.bench.load import Job
from tests.bench.service import running

IMAGES, CLIENTS = 20_000, 8
EVICTING = ("--maxmemory", "256mb", "--maxmemory-policy", "volatile-lru")


def run(bench: Bench) -> list[Line]:
    """In tens of seconds; what was seen in the first fifth is compared with the last."""
    if shutil.which("redis-server") is None:
        bench.log("  left out: there is no redis-server here")
        return []
    wanted = IMAGES // 100 if bench.quick else IMAGES
    job = Job("grpc", "", "classify", clients=CLIENTS, seconds=10 * bench.seconds)
    rates, memory, done, failed = [], [], 0, 0
    with (
        tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder,
        redis_server.running(Path(folder), *EVICTING) as server,
        running(bench.directory, REDIS_URL=server.url, **SMALL) as service,
    ):
        while done < wanted or len(rates) < 5:
            outcome = bench.load(job.of(address=service.grpc))
            done, failed = done + outcome.answered, failed + outcome.errors
            rates.append(outcome.rate)
            memory.append(service.pss_bytes() / 1e9)
            bench.log(f"  {done:,} of {wanted:,} images")
    facts = {"images": done, "failed": failed}
    return [
        Line("new images, half minute by half minute", "/s", rates, True, facts=facts),
        _later("rate, last fifth / first fifth", rates, True),
        Line("memory meanwhile", "GB", memory),
        _later("memory, last fifth / first fifth", memory, False),
    ]


def _later(name: str, values: list[float], more_is_better: bool) -> Line:
    fifth = len(values) // 5
    pairs = zip(values[-fifth:], values[:fifth], strict=True)
    return Line(name, "×", [last / first for last, first in pairs], more_is_better)
