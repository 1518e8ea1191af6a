"""Part ``replicas``: two services, each with a core of its own, against one of them alone.

The generator shares those cores with them: its part is among the facts.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.bench.bench import Bench
from tests.bench.lines import Line, ratio
from tests.bench.load import Job, generator
from tests.bench.service import running


def run(bench: Bench) -> list[Line]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return []
    one, two, shares = [], [], []
    with ExitStack() as stack:
        loads = [stack.enter_context(generator()) for _ in cores]
        services = [
            stack.enter_context(running(bench.directory, {core}, TORCH_THREADS=1)) for core in cores
        ]
        jobs = [
            Job("grpc", service.grpc, "classify", clients=16, seconds=bench.seconds)
            for service in services
        ]
        threads = stack.enter_context(ThreadPoolExecutor(len(cores)))
        for _ in range(bench.rounds):
            one.append(loads[0](jobs[0]).rate)
            both = list(threads.map(lambda load, job: load(job), loads, jobs))
            two.append(sum(outcome.rate for outcome in both))
            shares.append(sum(outcome.cpu_share for outcome in both))
    alone = Line("one service on one core", "/s", one, True)
    together = Line(
        "two services on two cores", "/s", two, True, facts={"generator_cores": max(shares)}
    )
    return [alone, together, ratio("two services / one", together, alone, True)]
