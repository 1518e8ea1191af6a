"""Every setting is a flag."""

import pytest
from samclip.cli.usage import Parser

from services.launch import flags
from services.settings import Settings, SettingsError


def parsed(*words: str) -> Settings:
    parser = Parser()
    flags.add(parser)
    return flags.read(parser.parse_args(words))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("http_port", "8001", 8001),
        ("allowed_hosts", "a.example,b.example", ("a.example", "b.example")),
        ("models_at_start", "all", "all"),
        ("batch_wait_ms", "2.5", 2.5),
    ],
)
def test_a_flag_sets_its_setting(name: str, text: str, value: object) -> None:
    assert getattr(parsed(f"--{name.replace('_', '-')}", text), name) == value


def test_a_flag_names_each_head() -> None:
    specs = ("/shop/fruit.py:Ripeness", "/a,b/parts")
    assert parsed("--head", specs[0], "--head", specs[1]).heads == specs


def test_every_setting_has_a_flag_and_the_help_of_secrets_says_that_it_does_not_hide_them() -> None:
    parser = Parser()
    flags.add(parser)
    names = {action.dest for action in parser._actions}
    assert names - {"help", "config"} == set(Settings.model_fields)
    warned = {action.dest for action in parser._actions if "hides it" in (action.help or "")}
    assert warned >= {"front_door_secret", "backbone_api_key", "redis_url"}
    assert "checkpoint" not in warned


def test_a_flag_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMCLIP_GRPC_PORT", "9005")
    monkeypatch.setenv("SAMCLIP_ALLOW_OPEN", "true")
    assert parsed("--grpc-port", "9006").grpc_port == 9006
    assert parsed("--allow-open").allow_open
    assert not parsed("--no-allow-open").allow_open
    assert parsed().grpc_port == 9005


def test_a_value_out_of_range_is_named() -> None:
    with pytest.raises(SettingsError, match="http_port"):
        parsed("--http-port", "70000")
