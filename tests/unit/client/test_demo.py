"""The demonstration against a service with known answers."""

from pathlib import Path

import pytest
from PIL import Image
from samclip import demo

from tests.fake_server import fake_server
from tests.unit.client.conftest import Captured


def test_what_is_asked_lies_inside_the_photographs() -> None:
    for scene in demo.SCENES:
        with Image.open(demo.photograph(*scene.file)) as photo:
            width, height = photo.size
        (x_min, y_min, x_max, y_max), (x, y) = scene.box, scene.click
        assert 0 <= x_min < x_max <= width
        assert 0 <= y_min < y_max <= height
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_pictures_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(demo, "SCENES", demo.SCENES[1:3])  # two small ones
    with fake_server() as (service, address):
        monkeypatch.setenv("SAMCLIP_SERVER", address)
        assert demo.main(["--api-key", "a key", "--out", str(tmp_path / "out")]) == 0
    assert {headers["authorization"] for _, headers in service.calls} == {"Bearer a key"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("click", "box", "semantic", "everything")
    assert names == {"demo.png"} | {f"{s.name}-{kind}.png" for s in demo.SCENES for kind in kinds}
    with Image.open(tmp_path / "out/demo.png") as sheet:
        assert sheet.width == 4 * 480
    assert len(set(service.uploads)) == len(demo.SCENES)
    assert service.collections[demo.COLLECTION] == {}  # the demo deletes its items
    shown = capsys.readouterr().out
    for scene in demo.SCENES:
        assert f"\n{scene.name} " in shown
    for text in demo.SEARCHES:
        assert f"\n{text} " in shown


def test_no_service_is_started_for_pictures_that_cannot_be_written(
    tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "out").touch()
    assert demo.main(["--server", "127.0.0.1:1", "--out", str(tmp_path / "out")]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "File exists" in error
    assert str(tmp_path / "out") in error


def test_a_service_that_does_not_start_is_named_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("SAMCLIP_CHECKPOINT", "no-such-checkpoint")
    assert demo.main(["--server", "127.0.0.1:1", "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert not shown.out
    first, second, last = shown.err.splitlines()
    assert first == "no service answers at 127.0.0.1:1: starting one"
    assert second.startswith("samclip demo: the service did not start")
    assert last.startswith("samclip serve: no checkpoint 'no-such-checkpoint'")


def test_without_the_packages_of_the_photographs(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert demo.main([]) == 1
    assert "pip install -e '.[demo]'" in capsys.readouterr().err
