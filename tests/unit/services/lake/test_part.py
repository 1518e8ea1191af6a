"""The plan of a batch and the tables of its parts, without Ray."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samclip_core.answers import stored_objects as objects
from samclip_core.answers.find_regions import FindRegions
from samclip_core.answers.things import best_of_each
from samclip_core.errors import InvalidLabels, InvalidRequest
from samclip_core.io.folder import Folder
from samclip_core.io.image import image_key
from samclip_core.model import SamClip
from services.lake import answers, exports
from services.lake.part import run_part
from services.lake.plan import PlanMismatch
from services.lake.tables import writing
from tests.fakes import in_the_middle
from tests.lake import NOTHING, files, planned
from tests.photographs import draw, jpg
from tests.tiny import WITHOUT_MASKS, make_tiny_checkpoint

EVERYTHING = {
    "embed": True,
    "labels": ["a dog", "a cat", "grass"],
    "top_k": 2,
    "text": ["a dog", "a cat"],
    "exclusive": True,
    "min_score": 0.0,
    "everything": True,
    "semantic": ["a dog", "grass"],
    "regions": True,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write five images, of which one is damaged."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        encoded = jpg(draw(number, 60 + number, 80).image_HW3)
        (folder / f"{number}.jpg").write_bytes(encoded[: 200 if number == 3 else None])
    return folder


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def test_answers_are_those_of_the_library(out: str, photos: Path, tiny_model: SamClip) -> None:
    plan = planned(out, photos, tiny_model, **EVERYTHING)
    assert (plan.count, plan.images) == (3, 5)
    for number in range(plan.count):
        run_part(tiny_model, plan, number, 2)
    metadata = pq.read_schema(f"{out}/images/part-00000.parquet").metadata
    assert metadata[b"samclip.digest"].decode() == tiny_model.digest
    rows = pq.read_table(f"{out}/images").to_pylist()
    assert [row["id"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    for row in rows:
        encoded = Path(row["source"]).read_bytes()
        assert row["key"] == image_key(encoded)
        assert row["thumbnail"].startswith("data:image/jpeg;base64,")
        assert (row["width"], row["height"]) == (80, 60 + int(row["id"][0]))
        np.testing.assert_allclose(row["embedding"], tiny_model.embed_image(encoded), atol=1e-6)
        assert np.linalg.norm(row["embedding"]) == pytest.approx(1)
        scores = tiny_model.classify(encoded, EVERYTHING["labels"], top_k=2)
        assert [each["label"] for each in row["labels"]] == [score.label for score in scores]
        asked = tiny_model.find(encoded, EVERYTHING["text"], 0.0, exclusive=True)
        found = [mask for masks in asked for mask in best_of_each(masks)]
        found += tiny_model.segment_everything(encoded, labels=EVERYTHING["labels"])
        assert [mask["label"] for mask in row["masks"]] == [mask.label for mask in found]
        for mask, expected in zip(row["masks"], found, strict=True):
            rle = {"size": mask["size"], "counts": mask["counts"]}
            assert mask["area"] == coco_mask.area(rle)
            assert (coco_mask.decode(rle).astype(bool) != expected.mask_HW).mean() < 0.001
        features = tiny_model.regions(tiny_model.encode(encoded))
        assert len(row["regions"]) == len(features.regions)
        packed = objects.pack(features.regions, features.geometry)
        found, expected = (
            objects.Objects(each, len(row["embedding"])) for each in (row["objects"], packed)
        )
        np.testing.assert_allclose(found.vector_RD, expected.vector_RD, atol=2e-3)
        assert np.array_equal(found[0].found().mask_HW, expected[0].found().mask_HW)
        assert all(np.linalg.norm(r["vector"]) == pytest.approx(1) for r in row["regions"])
        assert row["semantic"].startswith(b"\x89PNG")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Write a picture of which tiles are needed, one that is smaller, and one too small for 4."""
    folder = tmp_path / "large"
    folder.mkdir()
    for name, sides in {"0": (300, 400), "1": (160, 200), "2": (30, 40)}.items():
        (folder / f"{name}.jpg").write_bytes(jpg(draw(1, *sides).image_HW3))
    return folder


def test_tiles_are_encoded_once_and_answers_are_those_of_the_library(
    out: str, large: Path, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FindRegions, "steps", in_the_middle)
    encoded, encode = list[int](), tiny_model.encode_batch
    monkeypatch.setattr(tiny_model, "encode_batch", lambda b: encoded.append(len(b)) or encode(b))
    plan = planned(out, large, tiny_model, **EVERYTHING, tiles=[2, 2])
    for number in range(plan.count):
        run_part(tiny_model, plan, number, 2)
    assert sum(encoded) == 3 * (1 + 4)
    rows = pq.read_table(f"{out}/images").to_pylist()
    assert [row["id"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    for row in rows:
        picture = Path(row["source"]).read_bytes()
        asked = tiny_model.find(picture, EVERYTHING["text"], 0.0, 2, exclusive=True)
        found = [mask for masks in asked for mask in best_of_each(masks)]
        found += tiny_model.segment_everything(picture, labels=EVERYTHING["labels"], tiles=2)
        assert [mask["label"] for mask in row["masks"]] == [mask.label for mask in found]
        for mask, expected in zip(row["masks"], found, strict=True):
            assert mask["area"] == expected.mask_HW.sum()
        assert len(row["regions"]) == objects.count(row["objects"]) == 1 + 4
        areas = [region["area"] for region in row["regions"]]
        assert areas == sorted(areas, reverse=True)
        assert [region["size"] for region in row["regions"]] == 5 * [[row["height"], row["width"]]]
        several = objects.Objects(row["objects"], len(row["embedding"]))
        several.check(400 * 400, tiny_model.config.image_size)
        vectors = sorted(tuple(region["vector"]) for region in row["regions"])
        np.testing.assert_allclose(sorted(map(tuple, several.vector_RD)), vectors, atol=2e-3)
        expected = tiny_model.segment_text(picture, EVERYTHING["semantic"], tiles=2).label_map_HW
        semantic_HW = np.asarray(Image.open(io.BytesIO(row["semantic"])))
        assert (semantic_HW != expected).mean() < 0.001


def test_as_many_tiles_as_needed_and_a_picture_that_is_too_small(
    out: str, large: Path, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FindRegions, "steps", in_the_middle)
    for tiles, regions, failures in (([-1, 4], [5, 1, 1], []), ([4, 4], [13, 17], ["2.jpg"])):
        plan = planned(f"{out}{tiles[0]}", large, tiny_model, size=3, regions=True, tiles=tiles)
        run_part(tiny_model, plan, 0, 1)
        rows = pq.read_table(f"{plan.folder.path}/images").to_pylist()
        assert [len(row["regions"]) for row in rows] == regions
        failed = pq.read_table(f"{plan.folder.path}/failures").to_pylist()
        assert [row["id"] for row in failed] == failures
        assert all(
            "tiles is 4, and 40×30 pixels make tiles of 13" in row["reason"] for row in failed
        )
    another = planned(f"{out}other", large, tiny_model, size=3, regions=True, tiles=[3, 3])
    assert another.digest != plan.digest


def test_bad_images_are_named_with_their_reason(
    out: str, photos: Path, tiny_model: SamClip
) -> None:
    plan = planned(out, photos, tiny_model, size=10, embed=True)
    stamp = run_part(tiny_model, plan, 0, 1)
    assert (stamp.images, stamp.failures, stamp.unread) == (4, 1, 0)
    assert plan.done() == {0: stamp}
    (failure,) = pq.read_table(f"{out}/failures").to_pylist()
    assert (failure["id"], failure["source"]) == ("3.jpg", f"{photos}/3.jpg")
    assert "damaged" in failure["reason"]
    assert not failure["unread"]


def test_a_result_at_a_url_has_the_same_bytes(
    tmp_path: Path, photos: Path, tiny_model: SamClip
) -> None:
    """On a disk, at a URL, with other threads, and in another order."""
    ways = ((f"{tmp_path}/a", [0, 1, 2], 1), (f"memory://{tmp_path}/b", [2, 0, 1], 3))
    found = []
    for place, order, cpus in ways:
        plan = planned(place, photos, tiny_model, **EVERYTHING)
        for number in order:
            run_part(tiny_model, plan, number, cpus)
        found.append(files(plan.folder))
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_a_part_is_missing_until_all_its_files_are_there(
    out: str, photos: Path, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(out, photos, tiny_model, embed=True)

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("services.lake.tables.Rows.add", broken)
        with pytest.raises(OSError, match="No space left"):
            run_part(tiny_model, plan, 0, 1)
    assert plan.done() == {}
    assert files(plan.folder) == {}
    assert not [*(Path(out) / "_plan/partial").iterdir()]


def test_images_of_a_table_have_their_ids(
    out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    """Also if two have the same bytes; a text that is no Unicode becomes escapes."""
    picture = io.BytesIO()
    Image.new("RGB", (40, 30)).save(picture, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    table = tmp_path / "t.jsonl"
    rows = [
        {"id": id, "image": image, "owner": "\ud800", "thumbnail": "\ud800"}
        for id, image in (("a", data), ("\ud800", str(photos / "0.jpg")), ("c", data))
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = planned(out, table, tiny_model, size=3, embed=True)
    assert run_part(tiny_model, plan, 0, 1)[2:] == (3, 0, 0)
    found = pq.read_table(f"{out}/images").to_pylist()
    assert [row["id"] for row in found] == ["a", "\\ud800", "c"]
    assert found[0]["metadata"] == [("owner", "\\ud800"), ("thumbnail", "\\ud800")]
    assert found[0]["thumbnail"] is None
    assert found[0]["key"] == found[2]["key"] == image_key(picture.getvalue())


@pytest.mark.parametrize("at", ["{}/out", "memory://{}/out"])
def test_the_first_plan_of_a_folder_holds(
    at: str, tmp_path: Path, photos: Path, tiny_model: SamClip
) -> None:
    """Of two processes that plan at once, the second follows the first."""
    first = planned(at.format(tmp_path), photos, tiny_model, embed=True)
    second = planned(at.format(tmp_path), photos, tiny_model, size=1, embed=True)
    assert second.values == first.values


@pytest.mark.parametrize(
    ("name", "value"), [("sources", ["other"]), ("work", NOTHING), ("model", {"digest": "other"})]
)
def test_another_batch_in_the_same_folder_is_refused(
    out: str, photos: Path, tiny_model: SamClip, name: str, value: object
) -> None:
    plan = planned(out, photos, tiny_model, embed=True)
    plan.check({name: plan.values[name]})
    with pytest.raises(PlanMismatch, match=f"with other {name} .*another --out"):
        plan.check({name: value})


def test_two_writers_of_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with writing(folder, "a/part") as one, writing(folder, "a/part") as other:
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert (tmp_path / "a/part").read_bytes() in (b"one", b"other")


def test_a_batch_is_a_data_set_of_coco(
    out: str, photos: Path, tiny_model: SamClip, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(out, photos, tiny_model, **EVERYTHING)
    for number in range(plan.count):
        run_part(tiny_model, plan, number, 1)
    exports.write(plan)
    found = COCO(f"{out}/coco.json")
    rows = {row["id"]: row for row in pq.read_table(f"{out}/images").to_pylist()}
    assert {image["file_name"] for image in found.loadImgs(found.getImgIds())} == rows.keys()
    for image in found.loadImgs(found.getImgIds()):
        row = rows[image["file_name"]]
        assert (image["width"], image["height"]) == (row["width"], row["height"])
        annotations = found.loadAnns(found.getAnnIds(imgIds=[image["id"]]))
        assert len(annotations) == len(row["masks"])
        for annotation, mask in zip(annotations, row["masks"], strict=True):
            assert found.annToMask(annotation).sum() == mask["area"]
            (category,) = found.loadCats([annotation["category_id"]])
            assert category["name"] == (mask["label"] or "object")


def test_a_form_that_is_not_possible_is_refused_before_the_work() -> None:
    with pytest.raises(ValueError, match="coco needs masks: give --text or --everything"):
        exports.check(NOTHING | {"embed": True})


def test_questions_that_the_model_cannot_answer_are_refused_before_the_work(
    tmp_path: Path, tiny_model: SamClip
) -> None:
    answers.check(tiny_model, NOTHING | EVERYTHING)
    with pytest.raises(InvalidLabels):
        answers.check(tiny_model, NOTHING | {"labels": ["a dog", " "]})
    directory = make_tiny_checkpoint(tmp_path / "v4", "radio", **WITHOUT_MASKS)
    with pytest.raises(InvalidRequest, match="makes no masks"):
        answers.check(SamClip.load(directory), NOTHING | {"regions": True})
