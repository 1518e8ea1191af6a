"""The log of a running service is JSON, and one id follows a request through all services."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import redis_server
from tests.e2e.conftest import Service, start
from tests.in_process import png

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

ID = "one-id.from-the_caller"
REQUEST = {"message": "answered", "request_id": ID}


def lines(service: Service) -> list[dict[str, Any]]:
    """Parse all lines except the greeting. Raises ValueError if one is not JSON."""
    whole = service.log.read_text().rpartition("\n")[0]
    before, _, after = whole.partition("ready in ")
    greeting, _, after = after.partition("Ctrl-C stops.\n")
    assert len(greeting.splitlines()) == 4
    written = [*before.splitlines()[1:], *after.splitlines()]
    return [json.loads(line) for line in written]


def wait_for_line(running: Service, **fields: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for line in lines(running):
            if fields.items() <= line.items():
                return line
        time.sleep(0.2)
    raise AssertionError(f"no line with {fields} among {lines(running)}")


def test_every_line_is_json_and_has_the_id_of_the_caller(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with redis_server.running(tmp_path) as store:
        running = start(tmp_path, str(tiny_checkpoint), REDIS_URL=store.url, LOG_LEVEL="INFO")
        try:
            store.kill()
            with httpx.Client(base_url=running.url, timeout=300) as client:
                client.get("/not\\there\\")
                for number in range(3):
                    body = {"labels": ["a cat"], "top_k": 1}
                    asked = client.post(
                        "/classify",
                        files={"image": png(noise=number)},
                        data=body,
                        headers={"x-request-id": ID},
                    )
                    assert asked.status_code == 200, asked.text
                    assert asked.headers["x-request-id"] == ID
            wait_for_line(running, path="/not\\there\\", method="GET")
            door = wait_for_line(running, id=ID, path="/classify")
            assert door["status"] == 200
            wait_for_line(running, **REQUEST, service="ClassificationService", rpc="Classify")
            wait_for_line(running, **REQUEST, service="BackboneService", rpc="Embed")
            wait_for_line(running, logger="services.cache.connection", request_id=ID)
        finally:
            assert running.stop() == 0
        last = [line["message"] for line in lines(running) if "message" in line]
        assert "stopping …" in last
