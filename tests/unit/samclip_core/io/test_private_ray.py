"""How Ray is started, with a stand-in for it; tests/integration/test_private_ray.py starts it."""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samclip_core.errors import Unavailable
from samclip_core.io import private_ray


class Ray:
    """Records how it was started, and in which environment."""

    def __init__(self, opens: int | None = None, fails: int = 0) -> None:
        self.opens, self.fails = opens, fails
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.environment: dict[str, str] = {}
        self.running = False
        self.left: list[subprocess.Popen[bytes]] = []
        self.loopback: list[bool] = []
        self.job_config = SimpleNamespace(JobConfig=SimpleNamespace)
        self._private = SimpleNamespace(ray_constants=SimpleNamespace(ENABLE_RAY_CLUSTER=True))
        loader = SimpleNamespace(reset_cache=lambda: None)
        self._raylet = SimpleNamespace(
            Config=SimpleNamespace(initialize=lambda text: None),
            AuthenticationTokenLoader=SimpleNamespace(instance=lambda: loader),
        )

    def init(self, address: str, **options: Any) -> None:
        self.calls.append((address, options))
        self.environment = dict(os.environ)
        self.loopback.append(not self._private.ray_constants.ENABLE_RAY_CLUSTER)
        if len(self.calls) <= self.fails:
            self.left.append(subprocess.Popen(["sleep", "600"]))
            raise ValueError("no memory")
        if self.opens is not None:
            Path(options["_temp_dir"]).parent.chmod(self.opens)
        self.running = True

    def is_initialized(self) -> bool:
        return self.running

    def shutdown(self) -> None:
        self.running = False


def test_variables_of_the_user_do_not_open_it_and_are_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "known", "RAY_TMPDIR": "/tmp"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", "")
    ray, before = Ray(), dict(os.environ)
    with private_ray.connected(ray, num_cpus=1) as own:
        assert own
        ((address, options),) = ray.calls
        assert address == "local"
        assert options["num_cpus"] == 1
        assert ray.loopback == [True]
        parent = Path(options["_temp_dir"]).parent
        assert ray.environment["RAY_TMPDIR"] == str(parent)
        assert ray.environment["RAY_AUTH_MODE"] == "token"
        assert len(ray.environment["RAY_AUTH_TOKEN"]) == 64
    assert dict(os.environ) == before
    assert not ray.running
    assert not parent.exists()
    assert ray._private.ray_constants.ENABLE_RAY_CLUSTER


def test_a_cluster_is_joined_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6380")
    ray, before = Ray(), dict(os.environ)
    with private_ray.connected(ray, num_cpus=1, log_to_driver=False) as own:
        assert not own
        assert ray.calls == [("10.0.0.1:6380", {"log_to_driver": False})]
        assert ray.environment == before
    assert not ray.running


def test_a_connection_of_this_process_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Ray()
    ray.running = True
    with private_ray.connected(ray):
        pass
    assert ray.running
    assert not ray.calls


@pytest.mark.parametrize("when", ["before", "by Ray"])
def test_a_folder_that_others_may_enter_ends_the_start(tmp_path: Path, when: str) -> None:
    tmp_path.chmod(0o777 if when == "before" else 0o700)
    ray = Ray(opens=0o777)
    with pytest.raises(PermissionError, match="has mode 0777"), private_ray.started(ray, tmp_path):
        pytest.fail("others may enter the folder")
    assert not ray.running


def test_a_ray_that_does_not_start_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray, before = Ray(fails=private_ray.STARTS), dict(os.environ)
    reason = "did not start in 5 tries: no memory. Give the command again when the machine has more"
    with pytest.raises(Unavailable, match=reason), private_ray.connected(ray):
        pytest.fail("it runs")
    assert dict(os.environ) == before
    assert not Path(ray.calls[0][1]["_temp_dir"]).parent.exists()
    assert {process.wait(60) for process in ray.left} == {-signal.SIGKILL}


def test_a_busy_machine_gets_more_than_one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Ray(fails=private_ray.STARTS - 1)
    with private_ray.connected(ray):
        assert ray.running
    ended = [process.wait(60) for process in ray.left]
    assert ended == [-signal.SIGKILL] * (private_ray.STARTS - 1)
