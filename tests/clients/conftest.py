"""A service that requires keys, for clients in an environment of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.front_door import keys
from tests.e2e.conftest import Service, checkpoint_name, photo, start

KEY = "the key of a client, a long one"
PYTHON = Path(os.environ.get("CLIENTS", f"{sys.prefix}/clients"), "bin/python")
"""The interpreter with the clients, which `make clients` installs."""

__all__ = ["checkpoint_name", "photo"]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, checkpoint_name: str) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    file = directory / "keys"
    keys.write(file, [keys.Key(keys.digest(KEY), "client", ("read",), "client")])
    running = start(directory, checkpoint_name, API_KEYS_FILE=file)
    yield running
    running.stop()


def need(*modules: str) -> None:
    """Skip the test if the environment of the clients lacks a module."""
    code = f"import {', '.join(modules)}"
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", code], capture_output=True).returncode:
        pytest.skip(f"{PYTHON} has no {', '.join(modules)}: run make clients")
