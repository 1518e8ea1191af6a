"""Concepts that are written while the replica, and then the whole service, is killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import samclip

from tests.e2e.conftest import Service, start
from tests.faults import processes
from tests.faults.test_processes import FAULTS
from tests.in_process import png

pytestmark = [pytest.mark.e2e, FAULTS]


class Writer:
    """Adds one concept after another; ``done`` are those that were acknowledged."""

    def __init__(self, address: str) -> None:
        self.address, self.done = address, dict[str, int]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with samclip.Client(self.address, timeout=30) as client:
            for number in count():
                example = samclip.Example(png(number % 256), box=(5, 0, 20, 30))
                name = f"concept {number}"
                while name not in self.done:
                    if self._ended.is_set():
                        return
                    with suppress(samclip.ServiceError):
                        client.add_concept(name, [example])
                        self.done[name] = number

    def wait(self, most: int) -> None:
        """Wait until this many are acknowledged."""
        deadline = time.monotonic() + 300
        while len(self.done) < most:
            assert time.monotonic() < deadline, f"{len(self.done)} of {most} concepts are written"
            time.sleep(0.01)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def running(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Callable[[], Service]]:
    """Return a function that starts a service; all have the same folder of collections."""
    services: list[Service] = []

    def begin() -> Service:
        folder = tmp_path / f"service-{len(services)}"
        folder.mkdir()
        services.append(start(folder, str(tiny_checkpoint), INDEX_DIR=tmp_path / "index"))
        return services[-1]

    yield begin
    for service in services:
        service.stop()


def test_no_acknowledged_concept_is_lost(running: Callable[[], Service]) -> None:
    service = running()
    writer = Writer(service.address)
    try:
        writer.wait(10)
        processes.kill(service, processes.replica("retrieval"))
        writer.wait(30)
        for pid in service.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        writer.end()
    with samclip.Client(running().address) as client:
        found = {concept.name for concept in client.concepts()}
        assert found >= writer.done.keys()
        last, number = [*writer.done.items()][-1]
        labels = [f"concept:{last}", "a dog"]
        assert len(client.image(png(number % 256)).classify(labels)) == 2
