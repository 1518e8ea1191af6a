"""``--model`` of the commands that ask a service, and ``samclip models``."""

import json
import sys

import pytest
from samclip import cli
from samclip.v1 import samclip_pb2 as pb

from tests.fake_server import FakeService
from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import Captured, Server

BOX = ("--box", "0", "0", "4", "4")


@pytest.mark.parametrize(
    "words",
    [
        ("classify", "PHOTO", "--labels", "cat,dog"),
        ("segment", "PHOTO", "--point", "5", "6"),
        ("everything", "PHOTO"),
        ("semantic", "PHOTO", "--labels", "cat,dog"),
        ("explain", "PHOTO", "--label", "cat"),
        ("embed", "PHOTO", "--text", "a cat"),
        ("index", "pets", "PHOTO"),
        ("search", "pets", "--text", "cat"),
        ("describe", "pets"),
        ("delete", "pets", "a", "--yes"),
        ("concept", "add", "mug", "PHOTO", *BOX),
        ("reindex", "pets", "new", "--root", "FOLDER"),
        ("cache", "warm", "FOLDER"),
    ],
    ids=lambda words: words[0],
)
def test_every_command_names_the_model(
    service: FakeService, run: Run, photo: str, words: tuple[str, ...]
) -> None:
    service.collections["pets"] = {"grey.png": pb.IndexItem(id="grey.png")}
    places = {"PHOTO": photo, "FOLDER": photo.rpartition("/")[0]}
    ran = run(*(places.get(word, word) for word in words), "--model", "mobile")
    assert ran.status == 0, ran.err
    for request, _ in service.calls:
        of_old = words[0] == "reindex" and request.collection == "pets"  # of any model
        assert request.model == ("" if of_old else "mobile"), request


def test_without_a_service_the_checkpoint_is_named_in_its_place(
    photo: str, capsys: Captured
) -> None:
    words = ["classify", photo, "--local", "--labels", "cat", "--model", "mobile"]
    assert cli.main(words) == 2
    assert "name the checkpoint as --local=mobile" in capsys.readouterr().err


def test_the_models_of_a_service_are_listed(run: Run) -> None:
    rows = run("models").out.splitlines()
    assert [row.split()[0] for row in rows] == ["model", "fake", "clip", "today"]
    for row, said in zip(
        rows[1:],
        ["loaded, default, 250 MB", "idle, without masks", "loaded, another name of fake"],
        strict=True,
    ):
        assert row.endswith(said)
    listed = json.loads(run("models", "--json").out)
    assert [(each["name"], each["state"]) for each in listed] == [
        ("fake", "loaded"),
        ("clip", "idle"),
        ("today", "loaded"),
    ]


def test_server_without_a_value_is_the_usual_service(
    server: Server, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMCLIP_SERVER", server[1])
    assert cli.main(["models", "--server"]) == 0
    assert "clip" in capsys.readouterr().out
    assert cli.main(["models"]) == 0
    assert "samclip serve --checkpoint NAME makes a checkpoint" in capsys.readouterr().out


def test_a_service_that_is_away_is_named(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samclip.transport._OPTIONS", [])
    assert cli.main(["models", "--server", "127.0.0.1:1"]) == 1
    assert "no service answers at 127.0.0.1:1" in capsys.readouterr().err


def test_the_published_models_need_the_library(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "samclip_core.commands.models", None)
    assert cli.main(["models"]) == 1
    assert "pip install -e '.[core]'" in capsys.readouterr().err
