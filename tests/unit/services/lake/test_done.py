"""What is done stays done: tables follow one plan, from files as they were when they were read."""

import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from samclip_core.encoder import Prepared
from samclip_core.io.folder import Folder
from samclip_core.io.image import image_key
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from services.lake import answers, pipeline
from services.lake.part import run_part
from services.lake.plan import Plan, PlanMismatch
from tests.lake import files, planned
from tests.photographs import draw, jpg

COUNT = 4
FEATURES = dict[bytes, ImageFeatures]()


def photo(seed: int) -> bytes:
    return jpg(draw(seed, 40, 60).image_HW3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number}.jpg").write_bytes(photo(number))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture(autouse=True)
def encoded_once(tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the features of the few pictures here: what is done again is not their matter."""
    encode = tiny_model.encode_batch

    def known(batch: Sequence[Prepared]) -> list[ImageFeatures]:
        for one in batch:
            if one.pixels_3SS.tobytes() not in FEATURES:
                (FEATURES[one.pixels_3SS.tobytes()],) = encode([one])
        return [FEATURES[one.pixels_3SS.tobytes()] for one in batch]

    monkeypatch.setattr(tiny_model, "encode_batch", known)


def finish(model: SamClip, plan: Plan) -> dict[int, int]:
    """Do what is missing, as a run does; return the unread images of each part that was done."""
    missing = [number for number in range(plan.count) if number not in plan.done()]
    return {number: run_part(model, plan, number, 1).unread for number in missing}


def undisturbed(tmp_path: Path, source: str | Path, model: SamClip) -> dict[str, bytes]:
    plan = planned(str(tmp_path / "undisturbed"), source, model, embed=True)
    assert not any(finish(model, plan).values())
    return files(plan.folder)


def ids(out: str, table: str = "images") -> list[str]:
    return [row["id"] for row in pq.read_table(f"{out}/{table}").to_pylist()]


def test_the_parts_of_files_that_have_changed_are_done_again(
    out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    plan = planned(out, photos, tiny_model, embed=True)
    assert finish(tiny_model, plan) == {0: 0, 1: 0}
    assert finish(tiny_model, plan) == {}
    (photos / "2.jpg").write_bytes(photo(9))
    assert finish(tiny_model, plan) == {1: 0}
    assert files(plan.folder) == undisturbed(tmp_path, photos, tiny_model)


def test_the_parts_of_objects_that_have_changed_are_done_again(
    tmp_path: Path, tiny_model: SamClip
) -> None:
    store, out = f"memory://{tmp_path}/photos", f"memory://{tmp_path}/out"
    system = fsspec.filesystem("memory")
    for number in range(COUNT):
        system.pipe_file(f"{tmp_path}/photos/{number}.jpg", photo(number))
    plan = planned(out, store, tiny_model, embed=True)
    assert finish(tiny_model, plan) == {0: 0, 1: 0}
    assert finish(tiny_model, plan) == {}
    system.pipe_file(f"{tmp_path}/photos/1.jpg", photo(1))  # the same size at another time
    assert finish(tiny_model, plan) == {0: 0}


def test_a_shard_that_was_replaced_is_done_again(
    out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    shard = tmp_path / "a.tar"
    for names in (["0.jpg"], ["1.jpg", "2.jpg"]):
        with tarfile.open(shard, "w") as tar:
            for name in names:
                tar.add(photos / name, name)
        plan = planned(out, shard, tiny_model, embed=True)
        assert finish(tiny_model, plan) == {0: 0}
        assert ids(out) == [f"a.tar/{name}" for name in names]


def test_a_file_that_is_gone_keeps_its_answers(out: str, photos: Path, tiny_model: SamClip) -> None:
    plan = planned(out, photos, tiny_model, embed=True)
    finish(tiny_model, plan)
    shutil.rmtree(photos)
    assert finish(tiny_model, plan) == {}


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_a_file_that_a_list_names_is_read_again_after_a_change(
    kind: str, out: str, photos: Path, tiny_model: SamClip
) -> None:
    rows = [f"{number}.jpg" for number in range(COUNT)]
    if kind == "jsonl":
        rows = [json.dumps({"image": row}) for row in rows]
    table = photos / f"list.{kind}"
    table.write_text("".join(f"{row}\n" for row in rows))
    plan = planned(out, table, tiny_model, embed=True)
    assert finish(tiny_model, plan) == {0: 0, 1: 0}
    assert finish(tiny_model, plan) == {}
    os.utime(photos / "3.jpg", (1, 1))
    assert finish(tiny_model, plan) == {1: 0}


def test_a_table_whose_rows_have_moved_is_refused(
    out: str, photos: Path, tiny_model: SamClip
) -> None:
    """The plan has their places: another version of the table has others there."""
    table = photos / "list.jsonl"
    rows = [json.dumps({"image": f"{number}.jpg"}) + "\n" for number in range(COUNT)]
    table.write_text("".join(rows))
    plan = planned(out, table, tiny_model, embed=True)
    run_part(tiny_model, plan, 0, 1)
    table.write_text("".join(reversed(rows)))
    assert plan.done() == {}
    for number in range(plan.count):
        with pytest.raises(PlanMismatch, match=r"list.jsonl has changed .*another --out"):
            run_part(tiny_model, plan, number, 1)


def test_a_lost_plan_is_made_again_for_the_same_batch_only(
    out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    plan = planned(out, photos, tiny_model, embed=True)
    run_part(tiny_model, plan, 1, 1)
    shutil.rmtree(f"{out}/_plan")
    with pytest.raises(PlanMismatch, match=r"part-00001.parquet .* other\s+sources or questions"):
        planned(out, photos, tiny_model, labels=["a dog"])
    assert not Path(f"{out}/_plan/plan.json").exists()
    plan = planned(out, photos, tiny_model, embed=True)
    assert finish(tiny_model, plan) == {0: 0}
    assert files(plan.folder) == undisturbed(tmp_path, photos, tiny_model)


@pytest.mark.parametrize("at", ["disk", "url"])
def test_another_plan_in_the_folder_of_tables_is_refused(
    at: str, out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    out = out if at == "disk" else f"memory://{tmp_path}/out"
    plan = planned(out, photos, tiny_model, embed=True)
    run_part(tiny_model, plan, 0, 1)
    other = planned(f"{out}-other", photos, tiny_model, size=1, embed=True)
    system = plan.folder.system
    system.rm(f"{plan.folder.path}/_plan", recursive=True)
    for path in system.find(f"{other.folder.path}/_plan"):
        target = path.replace(other.folder.path, plan.folder.path)
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.pipe_file(target, system.cat_file(path))
    swapped = Plan.load(Folder(out))
    assert swapped is not None
    for call in (swapped.done, lambda: run_part(tiny_model, swapped, 0, 1)):
        with pytest.raises(PlanMismatch, match=r"part-00000\.parquet is of a batch with other"):
            call()


def test_tables_without_a_plan_in_their_stamp_are_refused(
    out: str, photos: Path, tiny_model: SamClip
) -> None:
    """As an earlier version wrote them."""
    plan = planned(out, photos, tiny_model, embed=True)
    Path(f"{out}/images").mkdir()
    pq.write_table(pq.read_table(written(plan, tiny_model)), f"{out}/images/part-00000.parquet")
    with pytest.raises(PlanMismatch, match="another version of samclip"):
        plan.done()


def written(plan: Plan, model: SamClip) -> str:
    other = planned(f"{plan.folder.url}-b", plan.values["sources"][0], model, embed=True)
    run_part(model, other, 0, 1)
    return f"{other.folder.path}/images/part-00000.parquet"


@pytest.mark.parametrize(
    ("name", "content"), [("plan.json", "{"), ("plan.json", "[]"), ("00000.jsonl", "")]
)
def test_a_damaged_plan_says_how_to_go_on(
    name: str, content: str, out: str, photos: Path, tiny_model: SamClip
) -> None:
    plan = planned(out, photos, tiny_model, embed=True)
    run_part(tiny_model, plan, 0, 1)
    (path,) = Path(f"{out}/_plan").rglob(name)
    path.write_text(content)
    with pytest.raises(PlanMismatch, match=r"remove .*_plan and repeat the command"):
        planned(out, photos, tiny_model, embed=True).done()
    shutil.rmtree(f"{out}/_plan")
    assert finish(tiny_model, planned(out, photos, tiny_model, embed=True)) == {1: 0}


@pytest.mark.parametrize("table", ["images", "failures"])
@pytest.mark.parametrize("kept", [0, 100, -9])
def test_a_part_with_a_damaged_table_is_done_again(
    table: str, kept: int, out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    plan = planned(out, photos, tiny_model, embed=True)
    finish(tiny_model, plan)
    damaged = Path(f"{out}/{table}/part-00001.parquet")
    damaged.write_bytes(damaged.read_bytes()[:kept])
    assert finish(tiny_model, plan) == {1: 0}
    assert files(plan.folder) == undisturbed(tmp_path, photos, tiny_model)


def test_a_part_of_two_runs_is_done_again(
    out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    """The failures of one that could not read an image, and the images of one that could."""
    plan = planned(out, photos, tiny_model, embed=True)
    (photos / "0.jpg").rename(photos / "kept")
    assert finish(tiny_model, plan) == {0: 1, 1: 0}
    failures = Path(f"{out}/failures/part-00000.parquet")
    stale = failures.read_bytes()
    (photos / "kept").rename(photos / "0.jpg")
    assert finish(tiny_model, plan) == {0: 0}
    failures.write_bytes(stale)
    assert finish(tiny_model, plan) == {0: 0}
    assert files(plan.folder) == undisturbed(tmp_path, photos, tiny_model)


def test_what_could_not_be_read_is_tried_again(
    out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    (photos / "3.jpg").write_bytes(b"no image")
    plan = planned(out, photos, tiny_model, embed=True)
    (photos / "0.jpg").rename(photos / "kept")
    assert finish(tiny_model, plan) == {0: 1, 1: 0}
    rows = pq.read_table(f"{out}/failures").to_pylist()
    assert [(row["id"], row["unread"]) for row in rows] == [("0.jpg", True), ("3.jpg", False)]
    assert finish(tiny_model, plan) == {0: 1}
    (photos / "kept").rename(photos / "0.jpg")
    assert finish(tiny_model, plan) == {0: 0}
    assert finish(tiny_model, plan) == {}
    assert files(plan.folder) == undisturbed(tmp_path, photos, tiny_model)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.jsonl"])
def test_a_shard_or_table_that_could_not_be_opened_is_tried_again(
    name: str, out: str, photos: Path, tmp_path: Path, tiny_model: SamClip
) -> None:
    source = tmp_path / name
    if name == "a.tar":
        with tarfile.open(source, "w") as tar:
            tar.add(photos / "0.jpg", "0.jpg")
    elif name == "a.parquet":
        pq.write_table(pa.table({"image": [photo(0)]}), source)
    else:
        source.write_text(json.dumps({"image": str(photos / "0.jpg")}))
    plan = planned(out, source, tiny_model, embed=True)
    source.rename(tmp_path / "kept")
    assert finish(tiny_model, plan) == {0: 1}
    (tmp_path / "kept").rename(source)
    assert finish(tiny_model, plan) == {0: 0}
    assert files(plan.folder) == undisturbed(tmp_path, source, tiny_model)


def test_a_file_that_changes_while_its_part_is_done_is_read_again(
    out: str, photos: Path, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = pipeline.decode

    def edits(encoded: bytes, limits: Any) -> Any:
        (photos / "1.jpg").write_bytes(photo(9))
        return decode(encoded, limits)

    plan = planned(out, photos, tiny_model, embed=True)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "decode", edits)
        assert finish(tiny_model, plan) == {0: 0, 1: 0}
    assert finish(tiny_model, plan) == {0: 0}
    row = pq.read_table(f"{out}/images/part-00000.parquet").to_pylist()[1]
    assert row["key"] == image_key(photo(9))


def test_answers_outlive_a_run_that_could_not_read_their_images(
    out: str, photos: Path, tiny_model: SamClip
) -> None:
    plan = planned(out, photos, tiny_model, embed=True)
    finish(tiny_model, plan)
    (photos / "0.jpg").write_bytes(photo(9))
    (photos / "1.jpg").rename(photos / "kept")
    before = files(plan.folder)
    assert finish(tiny_model, plan) == {0: 1}
    assert files(plan.folder) == before
    (photos / "kept").rename(photos / "1.jpg")
    assert finish(tiny_model, plan) == {0: 0}
    assert files(plan.folder) != before


@pytest.mark.parametrize(
    ("part", "error", "unread"),
    [
        ("encode", MemoryError(), 1),
        ("encode", RuntimeError("CUDA out of memory"), 1),
        ("decode", MemoryError(), 1),
        ("decode", RecursionError(), 0),
    ],
)
def test_an_error_of_the_encoder_or_the_decoder_is_that_of_one_image(
    part: str,
    error: Exception,
    unread: int,
    out: str,
    photos: Path,
    tiny_model: SamClip,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (photos / "1.jpg").write_bytes(bad := jpg(draw(1, 33, 60).image_HW3))
    decode, encode = pipeline.decode, answers.encode

    def fails_to_decode(encoded: bytes, limits: Any) -> Any:
        if encoded == bad:
            raise error
        return decode(encoded, limits)

    def fails_to_encode(
        model: SamClip, batch: Sequence[answers.Parts[Prepared]], at_once: int
    ) -> Any:
        frames = [frame for one in batch for parts in one.values() for _, frame in parts]
        if any(frame.geometry.height == 33 for frame in frames):
            raise error
        return encode(model, batch, at_once)

    if part == "decode":
        monkeypatch.setattr(pipeline, "decode", fails_to_decode)
    else:
        monkeypatch.setattr(pipeline.answers, "encode", fails_to_encode)
    plan = planned(out, photos, tiny_model, size=COUNT, embed=True)
    assert finish(tiny_model, plan) == {0: unread}
    assert ids(out) == ["0.jpg", "2.jpg", "3.jpg"]
    (failure,) = pq.read_table(f"{out}/failures").to_pylist()
    assert (failure["id"], type(error).__name__ in failure["reason"]) == ("1.jpg", True)
