"""Services that require keys, for clients in environments of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.front_door import keys
from tests.converted import make_converted
from tests.e2e.conftest import Service, checkpoint_name, photo, start
from tests.ports import free_port

KEY = "the key of a client, a long one"
PYTHON = Path(os.environ.get("CLIENTS", f"{sys.prefix}/clients"), "bin/python")
"""The interpreter with the clients, which `make clients` installs."""

LABEL_STUDIO = Path(os.environ.get("LABEL_STUDIO", f"{sys.prefix}/label-studio"), "bin")
"""The programs of Label Studio, which needs an environment of its own."""
FIFTYONE = Path(os.environ.get("FIFTYONE", f"{sys.prefix}/fiftyone"), "bin/python")
"""The interpreter with FiftyOne and what the client of this project needs."""
X_ANYLABELING = Path(os.environ.get("X_ANYLABELING", f"{sys.prefix}/x-anylabeling"), "bin/python")
"""The interpreter with X-AnyLabeling, whose window needs no screen."""
TYPESCRIPT = Path(os.environ.get("TYPESCRIPT", f"{sys.prefix}/typescript"))
"""The folder with the generator of TypeScript clients and its compiler."""
TOKEN = "0123456789abcdef0123456789abcdef01234567"
"""Label Studio's token of the user that its start makes."""

__all__ = ["checkpoint_name", "photo"]


@pytest.fixture(scope="session")
def label_studio_url() -> str:
    """Return where Label Studio will listen."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def label_studio(label_studio_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run Label Studio; skip the test if it is not installed."""
    if not (LABEL_STUDIO / "label-studio").exists():
        pytest.skip(f"no Label Studio in {LABEL_STUDIO}: run make clients")
    directory = tmp_path_factory.mktemp("label-studio")
    options = {"data-dir": directory, "internal-host": "127.0.0.1"}
    options |= {"port": label_studio_url.rpartition(":")[2], "user-token": TOKEN}
    options |= {"username": "ann@example.com", "password": "a password of ann"}
    pairs = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [LABEL_STUDIO / "label-studio", "start", "--no-browser", *pairs]
    # Its tokens of this kind, and backends and webhooks on this machine, are off by default.
    environment = {**os.environ, "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"}
    environment |= {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}
    environment |= {"COLLECT_ANALYTICS": "false", "SENTRY_DSN": ""}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    while True:
        try:
            if httpx.get(f"{label_studio_url}/health", timeout=60).is_success:
                break
        except httpx.HTTPError:
            assert process.poll() is None, (directory / "log").read_text()
        time.sleep(0.5)
    yield label_studio_url
    process.terminate()
    process.wait()


@pytest.fixture(scope="session", params=["bundled", "radio"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ``checkpoint_name``, or a converted checkpoint with random weights."""
    if request.param == "bundled":
        return Path(request.getfixturevalue("checkpoint_name"))
    data = request.getfixturevalue("radio_tiny").parent
    return make_converted(request.param, data, tmp_path_factory.mktemp("weights") / "tiny-radio")


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, label_studio_url: str
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    file = directory / "keys"
    keys.write(file, [keys.Key(keys.digest(KEY), "client", ("read",), "client")])
    running = start(
        directory,
        str(weights),
        API_KEYS_FILE=file,
        LABEL_STUDIO_URL=label_studio_url,
        LABEL_STUDIO_TOKEN=TOKEN,
    )
    yield running
    running.stop()


def need(*modules: str, python: Path = PYTHON) -> None:
    """Skip the test if the environment of the clients lacks a module."""
    code = f"import {', '.join(modules)}"
    if not python.exists() or subprocess.run([python, "-c", code], capture_output=True).returncode:
        pytest.skip(f"{python} has no {', '.join(modules)}: run make clients")
