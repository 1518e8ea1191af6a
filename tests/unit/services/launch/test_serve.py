"""Errors of ``samclip serve`` before it starts anything; tests/e2e test the running service."""

import os
import shutil
import socket
import tempfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve._private import haproxy_templates

from samclip_core.commands import pull
from samclip_core.errors import CheckpointError
from samclip_core.families.published import Published
from samclip_core.io import checkpoint
from samclip_core.io.checkpoint import WEIGHTS
from samclip_core.io.files import socket_folder
from services.launch import applications, serve
from tests.checkout import ROOT
from tests.ports import free_port


def started(**settings: object) -> int:
    """Start with free ports, unless the settings have some; return the exit code."""
    values = {"http_port": free_port(), "grpc_port": free_port(), **settings}
    flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items()]
    return serve.main([word for flag in flags for word in flag])


def test_a_port_in_use_is_named_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert started(grpc_port=port) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in error
    assert "--grpc-port or SAMCLIP_GRPC_PORT" in error


def test_a_folder_of_collections_that_all_users_share_is_refused(
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tmp_path.chmod(0o1777)
    assert started(index_dir=tmp_path, checkpoint=tiny_checkpoint) == 2
    assert f"index_dir {tmp_path} cannot be used" in capsys.readouterr().err


def test_a_missing_checkpoint_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert started(checkpoint=tmp_path / "none") == 2
    assert "samclip convert" in capsys.readouterr().err


def test_a_published_model_that_is_not_here_is_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(model: Published, out: Path | None, yes: bool) -> Path:
        error = CheckpointError(f"{model.name} to {out}, {yes}")
        error.add_note("copy these files")
        raise error

    monkeypatch.setattr(pull, "make", make)
    monkeypatch.setattr(checkpoint, "PULLED", tmp_path)
    assert started(checkpoint="mobile") == 2
    assert capsys.readouterr().err == "samclip serve: mobile to None, False\ncopy these files\n"


def test_a_damaged_checkpoint_is_refused_at_once_and_its_file_named(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, directory)
    weights = bytearray((directory / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (directory / WEIGHTS).write_bytes(weights)
    assert started(checkpoint=directory) == 2
    assert f"{directory / WEIGHTS} is missing or differs" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a folder's owner")
def test_it_starts_nothing_where_another_user_could_replace_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 4321, 4321)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "theirs"))
    monkeypatch.setattr("services.deployment.replica.choose_runtimes", lambda settings: None)
    monkeypatch.setattr(serve, "socket_folder", lambda below: socket_folder(-100))  # not in /tmp
    assert started(index_dir=tmp_path / "index") == 2
    assert "another user could replace" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "runs"), [("DEPLOYING", False), ("RUNNING", True)])
def test_it_waits_until_all_applications_run(
    monkeypatch: pytest.MonkeyPatch, status: str, runs: bool
) -> None:
    states = {
        "backbone": SimpleNamespace(status=status),
        "gateway": SimpleNamespace(status="RUNNING"),
    }
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=states))
    assert applications._all_run(["backbone", "gateway"]) is runs
    assert not applications._all_run(["backbone", "gateway", "retrieval"])


def test_an_application_that_cannot_start_ends_the_wait_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = {"backbone": SimpleNamespace(message="Error:\n  File model.py\nno memory")}
    failed = SimpleNamespace(status="DEPLOY_FAILED", message="failed", deployments=deployed)
    monkeypatch.setattr(
        "ray.serve.status", lambda: SimpleNamespace(applications={"backbone": failed})
    )
    with pytest.raises(RuntimeError, match="backbone did not start: no memory"):
        applications._all_run(["backbone"])


def test_another_ray_is_refused_with_the_version_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve._check_ray()  # the installed one is right
    monkeypatch.setattr(haproxy_templates, "HAPROXY_CONFIG_TEMPLATE", "frontend other\n")
    with pytest.raises(RuntimeError, match=r"^Ray \S+ is .* 0 times, expected once.*==2\.60\.\*'$"):
        serve._check_ray()
    monkeypatch.delattr(haproxy_templates, "HAPROXY_CONFIG_TEMPLATE")
    with pytest.raises(RuntimeError, match=r"HAPROXY_CONFIG_TEMPLATE.*pip install"):
        serve._check_ray()


def test_pip_installs_the_minor_version_of_ray_whose_parts_are_replaced() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = project["optional-dependencies"]["serve"]
    (pin,) = (pin for pin in pins if pin.startswith("ray["))
    major, minor = map(int, serve.RAY.split("."))
    assert pin == f"ray[serve]>={major}.{minor},<{major}.{minor + 1}"
