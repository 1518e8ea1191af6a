"""Settings come from flags, the environment and a file, and mistakes in them are named."""

from pathlib import Path

import pytest

from services.settings import Settings, SettingsError


def test_defaults_listen_on_loopback_and_serve_the_bundled_checkpoint() -> None:
    settings = Settings.load()
    assert (settings.host, settings.http_port, settings.grpc_port) == ("127.0.0.1", 8000, 9000)
    assert settings.checkpoint == "edge"
    assert settings.index_dir.is_absolute()


def test_a_flag_beats_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "samclip.toml"
    file.write_text('http_port = 1\ngrpc_port = 2\nmax_batch_size = 3\ncheckpoint = "file"\n')
    monkeypatch.setenv("SAMCLIP_GRPC_PORT", "20")
    monkeypatch.setenv("SAMCLIP_MAX_BATCH_SIZE", "30")
    settings = Settings.load(file, max_batch_size=300, device=None)
    assert (settings.http_port, settings.grpc_port, settings.max_batch_size) == (1, 20, 300)
    assert (settings.checkpoint, settings.device) == ("file", "cpu")


def test_an_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMCLIP_API_KEYS_FILE", "")
    monkeypatch.setenv("SAMCLIP_HTTP_PORT", "")
    settings = Settings.load()
    assert settings.api_keys_file is None
    assert settings.http_port == 8000


def test_an_unknown_variable_is_an_error_that_names_the_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAMCLIP_DATA", "/photographs")  # the tests' own
    Settings.load()
    monkeypatch.setenv("SAMCLIP_CHEKPOINT", "edge")
    with pytest.raises(SettingsError, match=r"SAMCLIP_CHEKPOINT.*SAMCLIP_CHECKPOINT"):
        Settings.load()


def test_without_a_home_directory_only_folders_in_it_must_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a uid not in passwd
    with pytest.raises(SettingsError) as raised:
        Settings.load(api_keys_file=tmp_path / "keys")
    for part in (
        "SAMCLIP_INDEX_DIR",
        "SAMCLIP_COMPILED_CACHE_DIR",
        "'~/.local/share/samclip/index'",
    ):
        assert part in str(raised.value)
    assert "api_keys_file" not in str(raised.value)
    monkeypatch.setenv("SAMCLIP_INDEX_DIR", str(tmp_path / "index"))
    settings = Settings.load(compiled_cache_dir=tmp_path / "compiled")
    assert settings.index_dir == tmp_path / "index"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chekpoint = 'edge'", "unknown setting 'chekpoint'"),
        ("http_port = 70000", "'http_port' is 70000"),
        ("dtype = 'int4'", "'dtype' is 'int4'"),
        ("http_port =", "cannot be read"),
    ],
)
def test_a_file_with_a_mistake_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "samclip.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        Settings.load(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("flag", "value", "other", "named"),
    [
        ("checkpoint", "/models/a", "models", ["a"]),
        ("models", "/models/a", "checkpoint", ["a"]),
    ],
)
def test_a_flag_for_the_models_beats_both_settings_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag, value, other, named
) -> None:
    file = tmp_path / "samclip.toml"
    file.write_text(f'{other} = "/models/b"\n')
    assert [*Settings.load(file, **{flag: value}).named] == named
    monkeypatch.setenv(f"SAMCLIP_{other.upper()}", "/models/c")
    assert [*Settings.load(**{flag: value}).named] == named
    with pytest.raises(SettingsError, match="both set"):
        Settings.load(models="/models/a", checkpoint="/models/b")


@pytest.mark.parametrize("setting", ["checkpoint", "models"])
def test_a_relative_folder_without_a_name_has_that_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine" / "inner")
    for folder, name in ((".", "inner"), ("./", "inner"), ("..", "mine"), ("../", "mine")):
        assert Settings(**{setting: folder}).default == name


def test_the_secret_is_not_printed() -> None:
    assert "sesame" not in repr(Settings(front_door_secret="sesame"))


def test_values_changed_at_run_time_are_checked_and_the_rest_stays(monkeypatch) -> None:
    settings = Settings(max_queue=9)
    monkeypatch.setenv("SAMCLIP_MAX_QUEUE", "10")
    tuned = settings.tuned({"batch_wait_ms": 7}, ["batch_wait_ms"])
    assert (tuned.batch_wait_ms, tuned.max_queue) == (7, 9)
    with pytest.raises(SettingsError, match=r"user_config has max_queue; .* is batch_wait_ms"):
        settings.tuned({"max_queue": 1}, ["batch_wait_ms"])
    with pytest.raises(SettingsError, match="'batch_wait_ms' is -1"):
        settings.tuned({"batch_wait_ms": -1}, ["batch_wait_ms"])
