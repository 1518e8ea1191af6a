"""A real Prometheus on a free port, with our configuration and rules."""

import os
import re
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
RULES = ("rules.yml", "slo.yml")


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


def _impatient(name: str, directory: Path) -> Path:
    """Write a copy of a rule file whose alerts fire at once."""
    file = directory / name
    text = (CONFIGURATION / name).read_text()
    file.write_text(re.sub(r"^( +for: ).*$", r"\g<1>0s", text, flags=re.MULTILINE))
    return file


@contextmanager
def running(
    directory: Path, target: str, alertmanager: str = "", key: Path | None = None
) -> Iterator[Prometheus]:
    """Run the deployed configuration with ``target`` as the service and intervals of 1 s.

    ``key`` is the file of its API key. With an ``alertmanager``, alerts fire without waiting for
    their time ``for``.
    """
    configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(CONFIGURATION / name) for name in RULES]
    configuration["alerting"] = {}
    if alertmanager:
        configuration["rule_files"] = [str(_impatient(name, directory)) for name in RULES]
        group = {"static_configs": [{"targets": [alertmanager]}]}
        configuration["alerting"]["alertmanagers"] = [group]
    for job in configuration["scrape_configs"]:
        if "authorization" in job:
            file = key or CONFIGURATION / job["authorization"]["credentials_file"]
            job["authorization"] = {"credentials_file": str(file)}
            job.pop("file_sd_configs")
            job["static_configs"] = [{"targets": [target]}]
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
