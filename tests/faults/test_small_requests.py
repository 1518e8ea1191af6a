"""Small requests bring nothing down: replicas stay, and an innocent caller is answered."""

import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from tests.e2e.conftest import Service, start
from tests.faults.attacks import ATTACKS, HANG_S, packed, text, upload
from tests.http_server import Handler, serving
from tests.in_process import png

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

PAUSE_S = 1.0
"""Pause between two requests of the innocent caller."""
IMAGES = itertools.count(secrets.randbits(32))


class LabelStudio(Handler):
    """Has one large upload, under every address."""

    def do_GET(self) -> None:
        with suppress(OSError):  # of a caller who has given up
            self.answer(upload())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service beside a Label Studio, with the limits of its default settings."""
    with serving(LabelStudio) as url:
        settings = {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_TOKEN": "t"}
        running = start(tmp_path_factory.mktemp("attacked"), "edge", **settings)
        yield running
        running.stop()


def segment(client: httpx.Client) -> str:
    """Segment a small new image, and return the status."""
    image = png(9, 40, 30, noise=next(IMAGES))
    body = packed({"image": text(image), "prompts": [{"points": [[1, 1]]}]})
    try:
        headers = {"content-type": "application/json"}
        return str(client.post("/segment", content=body, headers=headers).status_code)
    except httpx.TransportError as error:
        return type(error).__name__


@contextmanager
def innocent(service: Service) -> Iterator[Counter[str]]:
    """Segment one small image after another until the end of the block, and until one succeeds."""
    statuses, done = Counter[str](), threading.Event()

    def ask() -> None:
        last_s = time.monotonic() + HANG_S
        with httpx.Client(base_url=service.url, timeout=HANG_S) as client:
            while not done.is_set() or ("200" not in statuses and time.monotonic() < last_s):
                statuses[segment(client)] += 1
                time.sleep(PAUSE_S)

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        yield statuses
    finally:
        done.set()
        caller.join()


def is_ready(service: Service) -> bool:
    """Return whether the service is ready, or becomes so once its queue is empty."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{service.url}/readyz", timeout=HANG_S).is_success:
                return True
        time.sleep(0.5)
    return False


@pytest.mark.parametrize("name", ATTACKS)
def test_a_small_request_brings_nothing_down(service: Service, name: str) -> None:
    before = service.replicas()
    with innocent(service) as statuses:
        outcomes = ATTACKS[name].run(service)
    assert service.replicas() == before
    assert is_ready(service)
    assert statuses["200"]
    assert statuses.keys() <= {"200", "429", "504"}
    assert outcomes.total()
    unexpected = [code for code in outcomes if not code.startswith(ATTACKS[name].expected)]
    assert not unexpected, outcomes
