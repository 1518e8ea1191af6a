"""A real Prometheus on a free port, with our configuration and rules."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.checkout import ROOT
from tests.ports import free_port

CONFIGURATION = ROOT / "deploy/prometheus"


def required(binary: str) -> str:
    """Return the binary's name; skip the test where it is not installed, except in CI."""
    if shutil.which(binary) is None and "CI" not in os.environ:
        pytest.skip(f"{binary} is not installed: install Debian's package prometheus")
    return binary


class Prometheus:
    """A client of Prometheus' HTTP API."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=f"{self.url}/api/v1/", timeout=60)

    def get(self, path: str, **fields: str) -> Any:
        reply = self.http.get(path, params=fields)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    def query(self, query: str) -> list[float]:
        """Return the current values, without NaNs."""
        found = [float(sample["value"][1]) for sample in self.get("query", query=query)["result"]]
        return [value for value in found if value == value]


@contextmanager
def running(directory: Path, target: str) -> Iterator[Prometheus]:
    """Run the deployed configuration with ``target`` as the service and intervals of 1 s."""
    configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(CONFIGURATION / "rules.yml")]
    for job in configuration["scrape_configs"]:
        for group in job.get("static_configs", []):
            group["targets"] = [target]
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = [
        required("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command)
    server = Prometheus(port)
    try:
        yield server
    finally:
        server.http.close()
        process.terminate()
        process.wait()
