"""``samclip probe`` fits, writes, prints and judges; bad pictures and folders are named."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import samclip
from grpc import StatusCode
from PIL import Image
from samclip import cli
from samclip.cli import service
from samclip.types import Collection, ListedItem, Model

from samclip_core import SamClip
from samclip_core.answers.own import open_head
from services.probe import encode

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 40, 190)}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: object) -> tuple[int, str, str]:
        code = cli.main(["probe", *map(str, words)])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def local(tiny_checkpoint: Path, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the option for a model that is loaded once."""
    monkeypatch.setattr(SamClip, "load", lambda name: tiny_model)
    return f"--local={tiny_checkpoint}"


def paint(folder: Path, each: int, seed: int = 0) -> Path:
    """Write noisy pictures of each colour."""
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        for number in range(each):
            noisy = np.array(colour) + random.integers(-30, 31, (48, 64, 3))
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def test_colours_are_taught_to_edge(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SamClip.load("edge")
    monkeypatch.setattr(SamClip, "load", lambda name: model)  # it takes seconds
    taught, others = paint(tmp_path / "taught", 6), paint(tmp_path / "others", 4, seed=1)
    out = tmp_path / "colours"
    code, text, _ = run("fit", taught, "--out", out, "--local")
    assert code == 0
    assert "accuracy                     1.000  0.824  1.000  18" in text
    assert "zero-shot accuracy" in text
    assert "refused of classes left out" in text
    assert f"samclip serve --head {out}" in text
    assert {path.name for path in out.iterdir()} == {
        "head.json",
        "weights.safetensors",
        "README.md",
    }

    (others / "black").mkdir()
    Image.new("RGB", (64, 48)).save(others / "black/0.png")
    code, text, _ = run("eval", out, others, "--local", "--json")
    found = json.loads(text)
    figures = {row["figure"]: row for row in found["figures"]}
    assert figures["accuracy"]["value"] == 1
    assert figures["accuracy"]["of"] == 12
    assert figures["refused of other classes"]["of"] == 1
    head = open_head(str(out))
    head.load(model)
    answer = model.ask((others / "red/0.png").read_bytes(), head)
    assert answer["scores"][0]["class"] == "red"
    assert found["model"]["digest"] == model.digest


def test_pictures_that_cannot_be_read_are_named_and_the_rest_goes_on(
    tmp_path: Path, run: Run, local: str
) -> None:
    folder = paint(tmp_path / "photos", 3)
    (folder / "red/torn.jpg").write_bytes(b"no picture")
    (folder / "red/scan.tif").touch()
    code, text, named = run("fit", folder, "--out", tmp_path / "out", local, "--json")
    assert code == 1
    assert sorted(Path(name).name for name in json.loads(text)["failed"]) == [
        "scan.tif",
        "torn.jpg",
    ]
    assert "torn.jpg" in named
    assert json.loads((tmp_path / "out/head.json").read_text())["counts"]["red"] == 3

    for number in (1, 2):  # copies of one picture are one
        (folder / f"blue/{number}.png").write_bytes((folder / "blue/0.png").read_bytes())
    code, _, named = run("fit", folder, "--out", tmp_path / "out", local)
    assert code == 1
    assert "fewer than 2 different readable pictures of blue" in named


def test_embeddings_that_are_not_finite_are_named(
    tmp_path: Path, run: Run, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode.Photo, "embed", lambda photo: np.full(4, np.nan, np.float32))
    folder = paint(tmp_path / "photos", 2)
    code, _, named = run("fit", folder, "--out", tmp_path / "out", local)
    assert code == 1
    assert "its embedding is not finite" in named
    assert "none of 6 pictures has an embedding" in named


def test_mistakes_are_counted_and_shown(tmp_path: Path, run: Run, local: str) -> None:
    folder, out = paint(tmp_path / "photos", 4), tmp_path / "out"
    for number in range(4):  # labels that nothing can learn
        name = f"blue/{number}.png"
        (folder / name).replace(folder / "red" / f"x{number}.png")
        (folder / f"red/{number}.png").replace(folder / name)
    (folder / "red/x0.png").replace(folder / "green/x0.png")
    code, text, _ = run("fit", folder, "--out", out, local, "--json")
    assert code == 0
    found = json.loads(text)
    wrong = sum(row["count"] for row in found["confusions"])
    accuracy = found["figures"][0]
    assert wrong == round((1 - accuracy["value"]) * accuracy["of"]) > 0
    with Image.open(out / "mistakes.png") as sheet:
        assert sheet.width == min(6, wrong) * 240
    assert f"{accuracy['value']:.3f}" in (out / "README.md").read_text()


def test_boxes_are_taught_and_judged(tmp_path: Path, run: Run, local: str) -> None:
    images, annotations, names = [], [], [*COLOURS]
    for number in range(4):
        picture_HW3 = np.zeros((48, 96, 3), np.uint8)
        images.append({"id": number, "file_name": f"{number}.png"})
        for index, colour in enumerate(COLOURS.values()):
            picture_HW3[:, 32 * index : 32 * index + 32] = np.array(colour) + number
            box = [32 * index, 0, 33, 48]  # the last one goes beyond the picture
            about = {"image_id": number, "category_id": index, "bbox": box}
            annotations += [about, about | {"bbox": [500, 0, 9, 9]}]  # one is outside
        Image.fromarray(picture_HW3).save(tmp_path / f"{number}.png")
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    code, text, _ = run("fit", tmp_path / "boxes.json", "--out", tmp_path / "out", local)
    assert code == 0
    assert "accuracy                     1.000  0.758  1.000  12" in text
    assert open_head(str(tmp_path / "out")).of_boxes
    assert run("eval", tmp_path / "out", tmp_path / "boxes.json", local)[0] == 0
    code, _, named = run("eval", tmp_path / "out", paint(tmp_path / "photos", 2), local)
    assert code == 1
    assert "was fitted to boxes: give COCO's JSON" in named


class Service:
    """A client of a service with one collection, whose items are listed in pages of two."""

    model = Model("tiny", "d" * 64, "edge")

    def __init__(self, items: Sequence[ListedItem]) -> None:
        self.items, self.digest = items, self.model.digest
        self.busy = {"embed_text", "describe", "list_items"}

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def refuse_once(self, name: str) -> None:
        if name in self.busy:
            self.busy.remove(name)
            error = samclip.Overloaded(StatusCode.RESOURCE_EXHAUSTED, "busy", "1")
            error.retry_after_s = 0.0
            raise error

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        self.refuse_once("embed_text")
        return np.eye(4, dtype=np.float32)[: len(texts)]

    def describe(self, collection: str) -> list[Collection]:
        self.refuse_once("describe")
        return [Collection(collection, len(self.items), 4, self.digest)]

    def list_items(self, collection: str, *, after: str, **page: object) -> list[ListedItem]:
        self.refuse_once("list_items")
        assert page == {"limit": 500, "vectors": True}
        return [item for item in self.items if item.id > after][:2]


def test_a_collection_with_labels_is_fitted(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, items = np.random.default_rng(0), []
    for number in range(20):
        vector_D = np.eye(4)[number % 2] + random.normal(0, 0.1, 4)
        vector_D = (vector_D / np.linalg.norm(vector_D)).astype(np.float32)
        about = {"species": ("cat", "dog")[number % 2]} if number < 18 else {}
        items.append(ListedItem(f"{number:02}", about, 0, vector_D))
    client = Service(items)
    monkeypatch.setattr(service, "connect", lambda args, bulk: client)
    words = "--collection", "pets", "--label", "species"
    code, text, _ = run("fit", *words, "--out", tmp_path / "out")
    assert code == 0
    assert "accuracy                1.000  0.824  1.000  18" in text
    assert "zero-shot accuracy      1.000" in text
    assert run("eval", tmp_path / "out", *words)[0] == 0
    words = "--collection", "pets", "--label", "breed"
    assert "has the metadata 'breed'" in run("fit", *words, "--out", tmp_path / "out")[2]
    client.digest = "e" * 64
    assert "is of another model than tiny" in run("fit", *words, "--out", tmp_path / "out")[2]


@pytest.mark.parametrize(
    "words",
    [
        ("photos", "--collection", "pets", "--label", "species"),
        ("--collection", "pets"),
        ("photos", "--label", "species"),
        ("--collection", "pets", "--label", "species", "--local"),
        (),
    ],
)
def test_sources_that_do_not_go_together_are_a_usage_error(run: Run, words: Sequence[str]) -> None:
    assert run("fit", *words, "--out", "out")[0] == 2


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photos/red/probe", "is among the labelled pictures"),
        ("Capitals", "no usable name"),
        ("taken", "is neither empty nor a probe"),
        ("taken/notes.txt", "no usable name"),
        ("taken/file", "is neither empty nor a probe"),
    ],
)
def test_a_folder_that_is_not_a_probe_is_not_replaced(
    tmp_path: Path, run: Run, local: str, out: str, message: str
) -> None:
    folder = paint(tmp_path / "photos", 2)
    (tmp_path / "taken").mkdir()
    for name in ("notes.txt", "file"):
        (tmp_path / "taken" / name).write_text("mine")
    code, _, named = run("fit", folder, "--out", tmp_path / out, local)
    assert code == 1
    assert message in named
    assert (tmp_path / "taken/notes.txt").read_text() == "mine"


def test_options_that_do_not_fit_are_a_usage_error(tmp_path: Path, run: Run, local: str) -> None:
    photos = paint(tmp_path / "photos", 2)
    assert run("fit", photos, "--out", tmp_path / "out", local, "--model", "edge")[0] == 2


def test_another_checkpoint_is_refused_before_pictures_are_encoded(
    tmp_path: Path, run: Run, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = paint(tmp_path / "photos", 2), tmp_path / "out"
    for _ in range(2):  # the second one replaces the first
        assert run("fit", folder, "--out", out, local)[0] == 0
    about = json.loads((out / "head.json").read_text())
    about["model"]["digest"] = "f" * 64
    (out / "head.json").write_text(json.dumps(about))
    monkeypatch.delattr(encode.Photo, "embed")
    code, _, named = run("eval", out, folder, local)
    assert code == 1
    assert "fitted to tiny-edge with the digest ffffffffffff" in named
