"""What ``samclip serve`` refuses before it starts anything. That it serves is tests/e2e."""

import socket
from pathlib import Path

import pytest

from services import serve
from services.settings import Settings, SettingsError


def test_an_unknown_setting_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMCLIP_PORT", "1")
    assert serve.main([]) == 2
    assert "unknown environment variable SAMCLIP_PORT" in capsys.readouterr().err


def test_a_port_in_use_is_named_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main(["--grpc-port", str(port), "--http-port", str(serve.free_port())]) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in error
    assert "--grpc-port or SAMCLIP_GRPC_PORT" in error


def test_a_missing_checkpoint_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = ["--http-port", str(serve.free_port()), "--grpc-port", str(serve.free_port())]
    assert serve.main([*ports, "--checkpoint", str(tmp_path / "none")]) == 2
    assert "samclip convert" in capsys.readouterr().err


def free_settings(**values: object) -> Settings:
    ports = {"http_port": serve.free_port(), "grpc_port": serve.free_port()}
    return Settings.model_validate(ports | values)


def test_inner_ports_and_the_secret_are_chosen_where_not_given() -> None:
    first, second = serve.complete(free_settings()), serve.complete(free_settings())
    assert first.inner_http_port
    assert first.inner_grpc_port
    assert len(first.front_door_secret) >= 32
    assert first.front_door_secret != second.front_door_secret
    given = free_settings(inner_http_port=1234, front_door_secret="sesame")
    assert serve.complete(given).inner_http_port == 1234
    assert serve.complete(given).front_door_secret == "sesame"


def test_one_port_cannot_be_both(tmp_path: Path) -> None:
    port = serve.free_port()
    with pytest.raises(SettingsError, match="the same"):
        serve.complete(Settings(http_port=port, grpc_port=port))


def test_a_file_of_api_keys_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="api_keys_file"):
        serve.complete(free_settings(api_keys_file=tmp_path / "none"))


def test_two_instances_share_no_port_and_no_file(tmp_path: Path) -> None:
    environments = []
    for name in ("a", "b"):
        directory = tmp_path / name
        directory.mkdir()
        environments.append(serve.environment(serve.complete(free_settings()), directory))
    own = [name for name in environments[0] if name.endswith(("_PORT", "_PATH", "_LOC", "_DIR"))]
    assert len(own) == 12
    for name in own:
        assert environments[0][name] != environments[1][name]


def test_a_range_of_ports_is_free_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        # What a replica of another service does: others may bind its port, and would not notice.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("", serve.free_range(3) + 2))
        taken.listen()
        port = taken.getsockname()[1]
        offers = iter([port - 2 - 20_000, port + 1 - 20_000])
        monkeypatch.setattr(serve.secrets, "randbelow", lambda below: next(offers))
        assert serve.free_range(3) == port + 1


def test_replicas_take_one_thread_each_unless_they_ask_for_more(tmp_path: Path) -> None:
    environment = serve.environment(serve.complete(free_settings()), tmp_path)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
