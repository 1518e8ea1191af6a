"""Part ``cpu``: CPU time per process, per request and while idle, compared with the bare loop.

The bare loop is one process that decodes, encodes and classifies the same photographs with the
library, in one thread per core and without a service.
"""

import time
from collections import defaultdict
from collections.abc import Mapping

from benchmarks.bench import Bench
from benchmarks.in_process import SEVERAL
from benchmarks.library import Call, process
from benchmarks.lines import Line
from benchmarks.load import Job
from benchmarks.service import Running, running

ACCOUNT = "CPU time per request"
PER_SECOND = "nobody asks, per second"
WHOLE, ABOVE, DECODING, RATE = "all processes", "above the bare loop", "decoding", "answers"
BARE = "bare loop"
LOADS = {
    "new images, 8 clients": ("new", 8),
    "new images, 32 clients": ("new", 32),
    "known images, 32 clients": ("known", 32),
    "clicks, 32 clients": ("click", 32),
}
Samples = dict[tuple[str, str], list[float]]  # per round, by row and column


def run(bench: Bench) -> list[Line]:
    """Measure the idle service, the bare loop and each load in turns."""
    account: Samples = defaultdict(list)
    with running(bench.directory) as service, process(bench.directory, bench.dtype) as library:
        bench.load(Job(service.http, clients=8, seconds=2 * bench.seconds))
        library("classify_several", bench.seconds / 2, 3)
        for number in range(bench.rounds):
            bench.log(f"round {number + 1}")
            bare = _bare(library, bench.seconds)
            turn = {PER_SECOND: _idle(service, 2 * bench.seconds), BARE: bare}
            for column, (work, clients) in LOADS.items():
                before = service.cpu_ms()
                outcome = bench.load(Job(service.http, work, clients, bench.seconds))
                spent = _spent(before, service.cpu_ms(), outcome.answered)
                turn[column] = {RATE: outcome.rate} | spent
                if work == "new":
                    turn[column][ABOVE] = spent[WHOLE] - bare[WHOLE]
            for column, rows in turn.items():
                for row, value in rows.items():
                    account[row, column].append(value)
    order = [RATE, *dict.fromkeys(row for row, _ in account if row not in (RATE, WHOLE, ABOVE))]
    order += [WHOLE, ABOVE]
    return [
        Line(ACCOUNT, row, column, "/s" if row == RATE else "ms", values)
        for (row, column), values in sorted(account.items(), key=lambda a: order.index(a[0][0]))
    ]


def _idle(service: Running, seconds: float) -> dict[str, float]:
    before, begin = service.cpu_ms(), time.perf_counter()
    time.sleep(seconds)
    return _spent(before, service.cpu_ms(), time.perf_counter() - begin)


def _bare(library: Call, seconds: float) -> dict[str, float]:
    loop = library("classify_several", seconds, 3)
    return {
        RATE: 1000 * SEVERAL * len(loop["ms"]) / sum(loop["ms"]),
        DECODING: library("decode", seconds / 3, 8)["cpu_ms"],
        WHOLE: loop["cpu_ms"] / SEVERAL,
    }


def _spent(
    before: Mapping[str, float], after: Mapping[str, float], times: float
) -> dict[str, float]:
    by_role = {role: (ms - before[role]) / times for role, ms in after.items()}
    return by_role | {WHOLE: sum(by_role.values())}
