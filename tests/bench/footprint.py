"""Part ``footprint``: how long until the service is ready, and the memory that it takes."""

from tests.bench.bench import Bench
from tests.bench.lines import Line
from tests.bench.load import Job
from tests.bench.service import Running, running

GB = 1e9


def run(bench: Bench) -> list[Line]:
    ready, idle, served = [], [], []
    for _ in range(1 if bench.quick else 3):
        with running(bench.directory) as service:
            ready.append(service.greeting_s)
            idle.append(service.pss_bytes() / GB)
            served.append(_after_work(bench, service))
    return [
        Line("until ready", "s", ready),
        Line("memory, idle (PSS)", "GB", idle),
        Line("memory, after work (PSS)", "GB", served),
    ]


def _after_work(bench: Bench, service: Running) -> float:
    for kind, images in (("classify", "new"), ("click", "new"), ("semantic", "key")):
        bench.load(Job("grpc", service.grpc, kind, images, clients=8, seconds=bench.seconds))
    return service.pss_bytes() / GB
