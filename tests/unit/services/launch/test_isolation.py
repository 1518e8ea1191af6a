"""An instance has ports, a secret and files of its own, or says which setting cannot work."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from samclip_core.io.files import socket_folder
from services.front_door import haproxy
from services.launch import isolation
from services.launch.isolation import BLOCKS
from services.settings import Settings, SettingsError
from tests import tls
from tests.ports import free_port


def complete(block: range = BLOCKS[0], **values: object) -> Settings:
    return isolation.complete(free_settings(**values), block)


def free_settings(**values: object) -> Settings:
    own = {"http_port": free_port(), "grpc_port": free_port()}
    return Settings.model_validate(own | values)


def test_inner_ports_and_the_secret_are_chosen_where_not_given() -> None:
    first, second = complete(), complete()
    assert first.inner_http_port
    assert first.inner_grpc_port
    assert len(first.front_door_secret) >= 32
    assert first.front_door_secret != second.front_door_secret
    given = free_settings(inner_http_port=1234, front_door_secret="sesame")
    assert isolation.complete(given, BLOCKS[0]).inner_http_port == 1234
    assert isolation.complete(given, BLOCKS[0]).front_door_secret == "sesame"


def test_the_sockets_of_serves_haproxy_fit_into_every_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for more in range(60):
        with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as place:
            longer = Path(place) / ("x" * (more + 1))
            longer.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(longer))
            with socket_folder(isolation.IN_DIRECTORY) as directory:
                values = isolation.environment(complete(), directory, BLOCKS[0])
                given = Path(values["RAY_SERVE_HAPROXY_SOCKET_PATH"])
                in_node = given.parent / ("f" * 56) / given.name  # as Serve has it
                file = directory / "one.cfg"
                file.write_text(f"global\n  stats socket {in_node}\n")
                command = [haproxy.binary(), "-c", "-f", str(file)]
                checked = subprocess.run(command, capture_output=True, text=True)
        assert "too long" not in checked.stderr
        assert checked.returncode == 0, checked.stderr
        if directory.parent == Path("/tmp").resolve():
            return
    pytest.fail("every path was short")


def test_one_port_cannot_be_both() -> None:
    port = free_port()
    with pytest.raises(SettingsError, match="the same"):
        isolation.complete(Settings(http_port=port, grpc_port=port), BLOCKS[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"redis_url": "http://cache"}, "redis_url begins with 'http'"),
        ({"api_keys_file": "none"}, "api_keys_file"),
        ({"api_keys_file": "keys"}, r"line 1 .*--from-stdin"),
        ({"tls_cert_file": "nonsense.pem"}, "nonsense.pem"),
        ({"tls_cert_file": "none.pem"}, "none.pem"),
        ({"tls_cert_file": "localhost.pem", "tls_client_ca_file": "nonsense.pem"}, "nonsense.pem"),
        ({"tls_client_ca_file": "localhost.pem"}, "set tls_cert_file as well"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").write_text("a-key-in-the-clear\n")
    Path("nonsense.pem").write_text("nonsense")
    tls.certificate(tmp_path, "localhost")
    with pytest.raises(SettingsError, match=message):
        complete(**values)


def test_two_instances_share_no_port_and_no_file(tmp_path: Path) -> None:
    environments = []
    for block in BLOCKS[:2]:
        directory = tmp_path / f"{block.start}"
        directory.mkdir()
        environments.append(isolation.environment(complete(block), directory, block))
    first, second = environments
    own = {name for name in first if name.endswith(("_PORT", "_PATH", "_LOC", "_DIR"))}
    own -= {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"}
    assert len(own) == 13
    assert not [name for name in own if first[name] == second[name]]


def test_every_port_of_an_instance_is_in_its_block_and_given_away_once(tmp_path: Path) -> None:
    block = BLOCKS[3]
    settings = complete(block)
    environment = isolation.environment(settings, tmp_path, block)
    replicas = [
        range(
            int(environment[f"RAY_SERVE_DIRECT_INGRESS_MIN_{protocol}_PORT"]),
            int(environment[f"RAY_SERVE_DIRECT_INGRESS_MAX_{protocol}_PORT"]) + 1,
        )
        for protocol in ("HTTP", "GRPC")
    ]
    own = [int(environment[name]) for name in isolation.SERVES_OWN]
    given = [settings.inner_http_port, settings.inner_grpc_port, *own, *replicas[0], *replicas[1]]
    assert len(given) == len(set(given)) == 206
    assert set(given) <= set(block)


def test_a_tethered_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    script = isolation.tethered("/bin/sleep", tmp_path / "sleep")
    start = f"import subprocess; print(subprocess.Popen([{str(script)!r}, '600']).pid, flush=True)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{start}; import time; time.sleep(600)"], stdout=subprocess.PIPE
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    command = Path(f"/proc/{pid}/cmdline")
    while command.read_bytes() != b"/bin/sleep\x00600\x00":
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while command.exists():
        time.sleep(0.01)
