"""A folder with broken files: classified, segmented, indexed and searched by one command each."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from samclip import cli, demo

from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e
BROKEN = {"text.png": b"no image", "half.jpg": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with the demo's photographs, some in a folder of it, and two broken files."""
    photos = tmp_path / "photos"
    for number, scene in enumerate(demo.SCENES):
        source = demo.photograph(*scene.file)
        path = photos / ("more" if number > 4 else "") / f"{scene.name}{source.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
    whole = (photos / "rocket.jpg").read_bytes()
    for name, content in BROKEN.items():
        (photos / name).write_bytes(content or whole[: len(whole) // 2])
    return photos


Ask = Callable[..., str]


@pytest.fixture
def ask(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ask:
    """Return a function that runs a command, and returns its output.

    The command must name the two broken files, and nothing else, on stderr.
    """
    monkeypatch.setenv("SAMCLIP_SERVER", service.address)

    def run(*argv: str) -> str:
        assert cli.main([*argv, "--timeout", "300"]) == 1
        out, errors = capsys.readouterr()
        named = re.findall(r"^samclip: (\S+): ", errors, re.MULTILINE)
        assert sorted(Path(name).name for name in named) == sorted(BROKEN)
        assert len(errors.splitlines()) == len(BROKEN)
        return out

    return run


@pytest.mark.usefixtures("trained")
def test_a_folder_with_two_broken_files(
    ask: Ask, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--labels", *demo.LABELS, "--top-k", "1", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(ask("classify", str(folder), *options))))
    labels = {Path(row["image"]).stem: row["label"] for row in rows}
    in_order = ("astronaut", "cat", "coffee", "flower", "temple", "motorcycle", "rocket")
    assert tuple(labels) == in_order
    assert labels["cat"] == "a cat"

    coco = tmp_path / "coco.json"
    coco.write_text(ask("segment", str(folder), "--text", "a cat", "--format", "coco"))
    found = COCO(str(coco))
    capsys.readouterr()  # it reports its progress
    files = {image["file_name"]: image["id"] for image in found.loadImgs(found.getImgIds())}
    assert len(files) == len(in_order)
    (first, *_) = found.loadAnns(found.getAnnIds(imgIds=files["cat.png"]))
    assert found.annToMask(first).sum() == first["area"] > 5_000

    indexed = json.loads(ask("index", "seven", str(folder), "--json"))["results"]
    assert (indexed[0]["indexed"], indexed[0]["failed"]) == (len(in_order), len(BROKEN))
    assert cli.main(["search", "seven", "--text", "a pet", "--top-k", "1", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["results"]
    assert hit["id"] == "cat.png"
    assert cli.main(["delete", "seven", "--all", "--yes"]) == 0


def test_status_of_the_service(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--server", service.address, "--json"]) == 0
    rows = {row["what"]: row["state"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert rows["service"] == rows["client"]
    assert rows["RetrievalService"] == "ready"
    assert rows["model"].startswith("edge ")


def test_the_address_of_the_site_works_and_its_port_alone_names_the_right_one(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["describe", "--server", service.url]) == 0
    assert cli.main(["describe", "--server", service.url.removeprefix("http://")]) == 1
    assert (
        "a web server answers at this address: name the service's gRPC port"
        in capsys.readouterr().err
    )
