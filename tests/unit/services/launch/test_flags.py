"""Every setting is a flag."""

import pytest
from samclip.cli.usage import Parser

from services.launch import flags
from services.settings import Settings, SettingsError

VALUES = {
    "http_port": ("8001", 8001),
    "allowed_hosts": ("a.example,b.example", ("a.example", "b.example")),
    "cache_dtype": ("int8", "int8"),
    "batch_wait_ms": ("2.5", 2.5),
    "redis_url": ("redis://cache:6379/0", "redis://cache:6379/0"),
}


def parsed(*words: str) -> Settings:
    parser = Parser()
    flags.add(parser)
    return flags.read(parser.parse_args(words))


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_sets_its_setting(name: str) -> None:
    text, value = VALUES[name]
    assert getattr(parsed(f"--{name.replace('_', '-')}", text), name) == value


def test_no_setting_is_without_a_flag() -> None:
    parser = Parser()
    flags.add(parser)
    assert {action.dest for action in parser._actions} - {"help", "config"} == set(
        Settings.model_fields
    )


def test_the_help_of_secrets_says_that_a_flag_does_not_hide_them() -> None:
    parser = Parser()
    flags.add(parser)
    warned = {action.dest for action in parser._actions if "hides it" in (action.help or "")}
    assert warned >= {"front_door_secret", "backbone_api_key", "redis_url"}
    assert "checkpoint" not in warned


def test_switches() -> None:
    assert parsed("--allow-open").allow_open
    assert not parsed().allow_open


def test_a_flag_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMCLIP_GRPC_PORT", "9005")
    monkeypatch.setenv("SAMCLIP_ALLOW_OPEN", "true")
    assert parsed("--grpc-port", "9006").grpc_port == 9006
    assert not parsed("--no-allow-open").allow_open
    assert parsed().grpc_port == 9005


def test_a_value_out_of_range_is_named() -> None:
    with pytest.raises(SettingsError, match="http_port"):
        parsed("--http-port", "70000")
