"""Small requests bring nothing down: what each costs the real service, and what becomes of it.

``python -m tests.faults.test_small_requests`` sends the attacks in full size, and prints the table
of docs/notes/security.md; ``--root DIR`` attacks the service of another checkout.
"""

import argparse
import itertools
import os
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.checkout import ROOT
from tests.e2e.conftest import Service, start
from tests.faults.attacks import ATTACKS, HANG_S, packed, points, text, upload
from tests.http_server import Handler, serving
from tests.in_process import png

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

SAMPLE_S = 0.2
PAUSE_S = 1.0
"""Pause between two requests of the innocent caller."""
IDLE_S = 8.0
SETTLE_S = 3.0
IMAGES = itertools.count(secrets.randbits(32))


@dataclass
class Costs:
    """CPU seconds and memory of a service while it is watched, and what an innocent caller got."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    before: int = 0
    peak: int = 0
    after: int = 0
    innocent: Counter[str] = field(default_factory=Counter)

    @property
    def grown_mb(self) -> float:
        return (self.peak - self.before) / 1e6


def sample(service: Service, cpu_s: dict[int, float]) -> int:
    """Note CPU seconds and memory of each process of a service; return its memory in bytes."""
    memory = 0
    pids = {child.pid for child in psutil.Process(service.process.pid).children(recursive=True)}
    for pid in pids | {*service.processes()}:
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            memory += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        cpu_s[pid] = times.user + times.system
    return memory


def ask(client: httpx.Client) -> str:
    """Segment a small new image, and return the status."""
    body = packed({"image": text(png(9, 40, 30, noise=next(IMAGES))), "prompts": points(1)})
    try:
        return str(client.post("/segment", content=body, headers=JSON).status_code)
    except httpx.TransportError as error:
        return type(error).__name__


JSON = {"content-type": "application/json"}


@contextmanager
def watched(service: Service) -> Iterator[Costs]:
    """Measure a service, while an innocent caller asks for one small thing after another."""
    costs, done = Costs(), threading.Event()
    first: dict[int, float] = {}
    costs.before = costs.peak = sample(service, first)
    last, start_s = dict(first), time.monotonic()

    def measure() -> None:
        while not done.wait(SAMPLE_S):
            costs.peak = max(costs.peak, sample(service, last))

    def innocent() -> None:
        last_s = time.monotonic() + HANG_S
        with httpx.Client(base_url=service.url, timeout=HANG_S) as client:
            while not done.is_set() or ("200" not in costs.innocent and time.monotonic() < last_s):
                costs.innocent[ask(client)] += 1
                time.sleep(PAUSE_S)

    threads = [threading.Thread(target=each) for each in (measure, innocent)]
    for thread in threads:
        thread.start()
    try:
        yield costs
    finally:
        done.set()
        for thread in threads:
            thread.join()
    costs.wall_s = time.monotonic() - start_s
    costs.after = sample(service, last)
    costs.cpu_s = sum(last.values()) - sum(first.values())


def is_ready(service: Service) -> bool:
    """Return whether the service is ready, or becomes so once its queue is empty."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{service.url}/readyz", timeout=HANG_S).is_success:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    return False


class LabelStudio(Handler):
    """Has one large upload, under every address."""

    def do_GET(self) -> None:
        with suppress(OSError):  # of a caller who has given up
            self.answer(upload())


@contextmanager
def attacked(directory: Path, root: Path = ROOT) -> Iterator[Service]:
    """Run a service beside a Label Studio, with the limits of its default settings."""
    with serving(LabelStudio) as label_studio:
        settings = {"LABEL_STUDIO_URL": label_studio, "LABEL_STUDIO_TOKEN": "t"}
        running = start(directory, "edge", root=root, **settings)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with attacked(tmp_path_factory.mktemp("attacked")) as running:
        yield running


@pytest.mark.parametrize("name", ATTACKS)
def test_a_small_request_brings_nothing_down(service: Service, name: str) -> None:
    before = service.replicas()
    with watched(service) as costs:
        sent, outcomes = ATTACKS[name].run(service, False)
    print(row(name, sent, costs, 0.0, outcomes, "the same"))
    assert service.replicas() == before
    assert is_ready(service)
    assert costs.innocent["200"]
    assert costs.innocent.keys() <= {"200", "429", "504"}
    assert outcomes.total()
    unexpected = [code for code in outcomes if not code.startswith(ATTACKS[name].expected)]
    assert not unexpected, outcomes


def row(name: str, sent: int, costs: Costs, idle: float, outcomes: Counter[str], pids: str) -> str:
    """Return a row of the table; ``idle`` is the share of a core that the service takes anyway."""
    cells = (
        name,
        f"{sent:,}",
        f"{max(costs.cpu_s - idle * costs.wall_s, 0):.1f}",
        f"{costs.grown_mb:,.0f}",
        f"{(costs.after - costs.before) / 1e6:,.0f}",
        ", ".join(f"{count} × {code}" for code, count in outcomes.most_common()),
        ", ".join(f"{count} × {code}" for code, count in costs.innocent.most_common()),
        pids,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Attack a service of a checkout in full size, and print a row for each attack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of attacks; default: all")
    asked = parser.parse_args()
    names = list(ATTACKS)
    with (
        tempfile.TemporaryDirectory() as directory,
        attacked(Path(directory), asked.root) as service,
    ):
        with watched(service) as quiet:
            time.sleep(IDLE_S)
        idle = quiet.cpu_s / quiet.wall_s
        print(f"idle with an innocent caller: {idle:.2f} of a core, load {os.getloadavg()[0]}")
        for name in [names[n] for n in asked.only] if asked.only else names:
            before = service.replicas()
            with watched(service) as costs:
                sent, outcomes = ATTACKS[name].run(service, True)
                time.sleep(SETTLE_S)
            ready = is_ready(service)
            gone = len(before - service.replicas())
            pids = f"{gone} of {len(before)} replaced" if gone else "the same"
            pids += "" if ready else ", not ready"
            print(row(name, sent, costs, idle, outcomes, pids), flush=True)


if __name__ == "__main__":
    main()
