"""The notebooks in ``examples/`` run from top to bottom against the service."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.checkout import ROOT, sources
from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.ipynb"))}


def run(service: Service, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a notebook in a folder; return all that it shows, pictures as their media types."""
    monkeypatch.setenv("PYTHONPATH", sources())
    notebook = nbformat.read(NOTEBOOKS[name], nbformat.NO_CONVERT)
    for cell in notebook.cells:
        cell.source = cell.source.replace("127.0.0.1:9000", service.address)
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text", "") + json.dumps(output.get("data", {})) for output in outputs]
    return "".join(texts)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_not_kept(name: str) -> None:
    for cell in nbformat.read(NOTEBOOKS[name], nbformat.NO_CONVERT).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.usefixtures("trained")
def test_first_masks(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(service, "first_masks", tmp_path, monkeypatch)
    assert "label='a cat', score=0.9" in shown
    assert shown.count("image/jpeg") >= 3
    with Image.open(tmp_path / "cut-out.png") as picture:
        assert picture.mode == "RGBA"
    with Image.open(tmp_path / "helmet.png") as mask:
        assert mask.size == (512, 512)


@pytest.mark.usefixtures("trained")
def test_a_folder(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(service, "folder", tmp_path, monkeypatch)
    assert "cat.jpg          a cat" in shown
    assert "{'photographs/torn.jpg': 'the JPEG file is damaged" in shown
    assert "[Hit(id='coffee.jpg'" in shown
    dataset = COCO(tmp_path / "masks.json")
    (cat,) = dataset.getCatIds(catNms=["cat"])
    annotations = dataset.loadAnns(dataset.getAnnIds(catIds=[cat]))
    assert {dataset.imgs[each["image_id"]]["file_name"] for each in annotations} == {"cat.jpg"}
    for annotation in annotations:
        assert dataset.annToMask(annotation).sum() == annotation["area"]


@pytest.mark.usefixtures("trained")
def test_words(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(service, "words", tmp_path, monkeypatch)
    assert "['a helmet" in shown
    assert "'sky': '4" in shown
    assert shown.count("image/png") + shown.count("image/jpeg") >= 5
