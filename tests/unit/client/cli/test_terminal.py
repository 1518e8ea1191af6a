"""Other people's texts are shown on a terminal, which does not obey them."""

import json
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from samclip import cli
from samclip.errors import from_rpc, plain
from samclip.v1 import samclip_pb2 as pb

from samclip_core.commands import info
from samclip_core.config import EDGE
from samclip_core.errors import InvalidLabels
from samclip_core.io import checkpoint, manifest
from services.launch import doctor
from tests.fake_server import FakeService
from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import Captured

KEPT = "é 中 😀 👩‍🚀 שלום"
HOSTILE = f"{KEPT}\x1b[2J\x9b31m\x07\x7f\u202ecod.exe\u2069\r\n\tsamclip: all is well\u2028"
SHOWN = f"{KEPT}\\u001b[2J\\u009b31m\\u0007\\u007f\\u202ecod.exe\\u2069\\u000d\\u000a\\u0009samclip"


def harmless(shown: str) -> bool:
    return not [c for c in shown if c != "\n" and plain(c) != c] and "\nsamclip: all" not in shown


def test_letters_stay_as_they_are() -> None:
    assert plain(KEPT) == KEPT
    assert plain(HOSTILE).startswith(SHOWN)
    assert harmless(plain(HOSTILE))
    assert json.loads(f'"{plain(HOSTILE)}"') == HOSTILE


@pytest.fixture
def hostile(service: FakeService, run: Run) -> Run:
    """Return a function that runs a command, which asks a service with hostile texts."""
    item = pb.IndexItem(id=HOSTILE, metadata={HOSTILE: HOSTILE})
    service.collections |= {"pets": {HOSTILE: item}, HOSTILE: {}}
    return run


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
@pytest.mark.parametrize(
    "command",
    [
        ["search", "pets", "--text", "a cat"],
        ["describe"],
        ["classify", "PHOTO", "--labels", HOSTILE, "a"],
        ["everything", "PHOTO", "--labels", HOSTILE, "a", "--out", "OUT"],
        ["semantic", "PHOTO", "--labels", HOSTILE, "a"],
        ["segment", "PHOTO", "--text", HOSTILE],
    ],
)
def test_answers(
    command: list[str],
    form: str,
    hostile: Run,
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"PHOTO": photo, "OUT": str(tmp_path / HOSTILE.replace("/", ""))}
    given = [names.get(word, word) for word in command]
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        ran = hostile(*given, "--format", form)
        assert ran.status == 0
        assert harmless(ran.err)
        if terminal or form != "csv":  # a file of CSV has the texts as they are
            assert harmless(ran.out)
            assert SHOWN in ran.out.replace(r"\r\n\t", r"\u000d\u000a\u0009")
        else:
            assert HOSTILE in ran.out


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_data_sets(form: str, hostile: Run, photo: str, tmp_path: Path) -> None:
    words = ("everything", photo, "--labels", HOSTILE, "--format", form)
    ran = hostile(*words, "--out", str(tmp_path / HOSTILE))
    assert (ran.status, harmless(ran.out), harmless(ran.err)) == (0, True, True)


@pytest.mark.parametrize("more", [[], ["--format", "jsonl"]])
def test_names_of_files_and_errors(
    more: list[str], run: Run, service: FakeService, tmp_path: Path
) -> None:
    for number in range(2):
        Image.new("L", (6, 4), number).save(tmp_path / f"{number} {HOSTILE}.png")
    (tmp_path / f"2 {HOSTILE}.png").write_bytes(b"")
    service.refuse_after(1, grpc.StatusCode.INTERNAL, HOSTILE)
    ran = run("classify", str(tmp_path), "--labels", "a", *more)
    assert (ran.status, harmless(ran.out), harmless(ran.err)) == (1, True, True)
    assert ran.err.count(SHOWN) >= 3
    assert run("describe").err.startswith(f"samclip: {SHOWN}")


def test_a_checkpoint(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / checkpoint.CONFIG).write_text(EDGE.to_json())
    lineage = {HOSTILE: HOSTILE, "data": [HOSTILE], "nested": {HOSTILE: {"x": HOSTILE}}}
    (tmp_path / checkpoint.LINEAGE).write_text(json.dumps(lineage))
    (tmp_path / "an\x1b[2J.txt").write_text("")
    manifest.write(tmp_path, {"digest": manifest.digest_of({}), "files": {}})
    (tmp_path / "an\x1b[2J.txt").unlink()
    checkpoint.seal(tmp_path)
    (tmp_path / "an\x1b[2J.txt").write_text("")
    for more in ([], ["--json"]):
        assert info.main([str(tmp_path), *more]) == 0
        shown = capsys.readouterr().out
        assert harmless(shown)
        assert shown.count(KEPT) == 5
        assert "an\\u001b[2J.txt" in shown


def test_file_names_that_are_taken_for_options(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        cli.main(["classify", "--\x1b[31m.jpg", "cat.jpg", "--labels", "a"])
    shown = capsys.readouterr().err
    assert harmless(shown)
    assert "unrecognized arguments: --\\u001b[31m.jpg" in shown


def test_a_doctor(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    found = [doctor.Finding("Redis", "ok", f"version {HOSTILE}")]
    monkeypatch.setattr(doctor, "all_checks", lambda settings: found)
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert SHOWN in shown


def test_errors_of_both_libraries() -> None:
    assert harmless(str(InvalidLabels(f"the label {HOSTILE} is too long")))

    class Failed(grpc.RpcError):
        def code(self) -> Any:
            return grpc.StatusCode.INTERNAL

        def details(self) -> str:
            return HOSTILE

        def trailing_metadata(self) -> Any:
            return ()

    error = from_rpc(Failed(), "id", "gpu-1:9000")
    assert error.message == HOSTILE
    assert harmless(str(error))
