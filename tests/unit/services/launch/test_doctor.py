"""``samclip doctor``: what is wrong, and what to do."""

import json
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from samclip import cli

from samclip_core import engine
from samclip_core.engine.choice import Choice, Choices
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from services.deployment import replica
from services.launch import doctor
from services.settings import Settings
from tests import redis_server
from tests.ports import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        index_dir=tmp_path / "index", compiled_cache_dir=tmp_path / "cache", grpc_port=free_port()
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def test_a_taken_port_is_wrong_and_the_flag_for_another_is_named(
    settings: Settings, taken_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.port(settings, "grpc_port").state == "ok"
    argv = ["doctor", "--grpc-port", str(taken_port), "--http-port", str(free_port())]
    assert cli.main([*argv, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["results"]
    wrong = [row for row in rows if row["state"] == "wrong" and row["check"] == "port"]
    assert [str(taken_port) in row["found"] for row in wrong] == [True]
    assert "--grpc-port" in wrong[0]["advice"]
    assert cli.main(argv) == 1
    assert "choose another port with --grpc-port" in capsys.readouterr().out


def test_everything_is_looked_at(settings: Settings) -> None:
    found = list(doctor.all_checks(settings))
    assert {finding.check for finding in found} == {
        *("version", "CPU", "GPU", "memory", "disk", "open files", "front door"),
        *("port", "Redis", "checkpoint", "runtime"),
    }
    assert all(finding.advice for finding in found if finding.state != "ok")


def test_a_damaged_checkpoint(settings: Settings, tmp_path: Path) -> None:
    damaged = settings.model_copy(update={"checkpoint": str(tmp_path)})
    (found,) = doctor.checkpoint_files(damaged)
    assert found.state == "wrong"
    assert "no checkpoint" in found.found


@pytest.mark.parametrize("device", ["cuda", "mps", "no-device"])
def test_a_gpu_that_is_asked_for_and_is_not_there(
    settings: Settings, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = doctor.gpu(settings.model_copy(update={"device": device}))
    assert found.state == "wrong"
    assert f"cannot use the device {device!r}" in found.found
    assert len(found.found) < 400  # a line, not PyTorch's list of kernels
    assert "--device cpu" in found.advice
    with pytest.raises(CheckpointError, match=r"install its driver.*or choose cpu"):
        engine.load(checkpoint.resolve("edge"), device)


@pytest.mark.parametrize(("free", "state"), [(10**7, "wrong"), (10**12, "ok")])
def test_disks_that_are_full(
    settings: Settings, free: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": free})()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert {finding.state for finding in doctor.disk(settings)} == {state}


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.memory().found.endswith("GB available")
    monkeypatch.setattr(doctor, "MEMORY_BYTES", 1e15)
    assert doctor.memory().state == "wrong"


def test_versions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [
        *("numpy>=2", "ray>=99; extra == 'serve'", "missing>=1; extra == 'core'"),
        *("samclip[core]; extra == 'serve'", "torch>=99; extra == 'train'"),
    ]
    installed = {"samclip": "1.0", "numpy": "2.1", "ray": "2.60", "torch": "2.7"}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    monkeypatch.setattr(doctor, "version", version)
    found = [finding.found for finding in doctor.versions() if finding.state == "wrong"]
    assert found == ["ray: needs >=99, found 2.60", "missing: needs >=1, found none"]


@pytest.mark.parametrize(
    ("options", "state", "advice"),
    [
        ((), "note", "maxmemory"),
        (("--maxmemory", "8mb", "--maxmemory-policy", "noeviction"), "note", "volatile-lru"),
        (("--maxmemory", "8mb", "--maxmemory-policy", "volatile-lru"), "ok", ""),
    ],
)
def test_redis_that_is_full_or_away(
    settings: Settings, options: tuple[str, ...], state: str, advice: str, tmp_path: Path
) -> None:
    with redis_server.running(tmp_path, *options) as server:
        there = settings.model_copy(update={"redis_url": server.url})
        found = doctor.redis(there)
    assert doctor.redis(there).state == "wrong"
    assert found.state == state
    assert advice in found.advice
    assert "version" in found.found


def test_the_runtimes_that_were_chosen_are_shown_and_measured_on_request(
    settings: Settings,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_torch = settings.model_copy(update={"checkpoint": str(tiny_checkpoint)})
    assert [finding.check for finding in doctor.checkpoint_files(by_torch)] == ["checkpoint"]
    assert [finding.found for finding in doctor.checkpoint_files(settings)][1:] == [
        "image encoder: measured at the next start",
        "mask decoder: measured at the next start",
        "text encoder: measured at the next start",
    ]
    asked, times = list[bool](), {"openvino float32": 95.5, "onnxruntime float32": 88.0}

    def measure(*given: object) -> None:
        *_, folder, again = given
        kept = Choices(checkpoint.identity(checkpoint.resolve("edge")), "auto", folder, 0)
        kept.choose("image_encoder", Choice("openvino float32", times, False, 0.0))
        kept.choose("text_encoder", Choice("openvino float32", {}, True))
        asked.append(again)

    monkeypatch.setattr(replica, "settle", measure)
    folder = str(settings.compiled_cache_dir)
    cli.main(["doctor", "--json", "--compiled-cache-dir", folder, "--measure"])
    rows = json.loads(capsys.readouterr().out)["results"]
    busy, _, alone = (row for row in rows if row["check"] == "runtime")
    assert asked == [True]
    assert busy["found"].startswith("image encoder: openvino float32 (openvino float32 95.5 ms, ")
    assert (busy["state"], "busy" in busy["found"]) == ("note", True)
    assert "samclip doctor --measure" in busy["advice"]
    assert (alone["state"], "no other is here" in alone["found"]) == ("ok", True)
