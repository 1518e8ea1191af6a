"""``samclip index --from``: vectors of a table, without images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from samclip.v1 import samclip_pb2 as pb

from tests import lake
from tests.fake_server import MODEL, FakeService
from tests.unit.client.cli.conftest import Run

VECTORS = np.random.default_rng(0).normal(size=(2500, 4)).astype(np.float32)


def indexed(service: FakeService) -> list[str]:
    """Return the ids in the requests so far, and forget them."""
    calls = [request for request, _ in service.calls if isinstance(request, pb.IndexRequest)]
    service.calls.clear()
    return [item.id for request in calls for item in request.items]


def test_all_parts_are_stored_with_their_metadata(
    ask: Any, service: FakeService, tmp_path: Path
) -> None:
    ids = lake.write(tmp_path / "lake", VECTORS, MODEL.digest)
    (row,) = ask("index", "all", "--from", str(tmp_path / "lake"), "--metadata", "owner=ann")[
        "results"
    ]
    counts = {"indexed": 2500, "replaced": 0, "failed": 0, "skipped": 0}
    assert row == {"collection": "all", **counts}
    held = service.collections["all"]
    assert sorted(held) == sorted(ids)
    for n in (0, 1023, 1024, 2499):
        item = held[ids[n]]
        assert item.vector == VECTORS[n].astype("<f4").tobytes()
        even = "no" if n % 2 else "yes"
        origin = {"source": f"photos/{n}.jpg", "key": f"{n}"}
        assert item.metadata == {**origin, "even": even, "owner": "ann"}
        assert not item.HasField("image")
    models = [call.made_by for call, _ in service.calls if isinstance(call, pb.IndexRequest)]
    assert {(model.digest, model.dtype) for model in models} == {(MODEL.digest, "")}


def test_a_folder_may_have_the_name_of_a_pattern(ask: Any, tmp_path: Path) -> None:
    lake.write(tmp_path / "lake [2*]", VECTORS[:3], MODEL.digest)
    (row,) = ask("index", "all", "--from", str(tmp_path / "lake [2*]"))["results"]
    assert row["indexed"] == 3


def test_a_second_run_sends_what_is_missing_or_has_changed(
    ask: Any, service: FakeService, tmp_path: Path
) -> None:
    ids = lake.write(tmp_path / "lake", VECTORS, MODEL.digest)
    command = ("index", "all", "--from", str(tmp_path / "lake"))
    ask(*command)
    assert sorted(indexed(service)) == sorted(ids)
    (row,) = ask(*command)["results"]
    assert (row["indexed"], row["skipped"], indexed(service)) == (0, 2500, [])
    held = service.collections["all"]
    for n in (3, 1100):
        del held[ids[n]]
    held[ids[2000]].metadata["even"] = "perhaps"
    (row,) = ask(*command)["results"]
    assert (row["indexed"], row["replaced"], row["skipped"]) == (3, 1, 2497)
    assert sorted(indexed(service)) == sorted([ids[3], ids[1100], ids[2000]])


def test_the_vector_of_a_file_that_has_changed_is_sent(
    ask: Any, service: FakeService, tmp_path: Path
) -> None:
    """The photograph has its name and metadata, and another key."""
    lake.write(tmp_path / "before", VECTORS[:2], MODEL.digest)
    lake.write(tmp_path / "after", VECTORS[1:3], MODEL.digest, key=["0", "new"])
    ask("index", "all", "--from", str(tmp_path / "before"))
    (row,) = ask("index", "all", "--from", str(tmp_path / "after"))["results"]
    assert (row["indexed"], row["skipped"]) == (1, 1)
    assert service.collections["all"]["1.jpg"].vector == VECTORS[2].astype("<f4").tobytes()


def test_thumbnails_are_stored_where_the_service_has_room(
    ask: Any, service: FakeService, tmp_path: Path
) -> None:
    made = [f"data:image/jpeg;base64,{size * 'A'}" for size in (8, 400)]
    lake.write(tmp_path / "lake", VECTORS[:2], MODEL.digest, thumbnail=made)
    service.most_metadata = 300
    command = ("index", "all", "--from", str(tmp_path / "lake"))
    assert ask(*command)["results"][0]["indexed"] == 2
    held = service.collections["all"]
    assert held["0.jpg"].metadata["thumbnail"] == made[0]
    assert "thumbnail" not in held["1.jpg"].metadata
    assert ask(*command)["results"][0]["skipped"] == 2
    ask(*command, "--no-thumbnails")
    assert not any("thumbnail" in item.metadata for item in held.values())


@pytest.mark.parametrize("option", ["--objects", "--regions"])
def test_objects_are_loaded_where_they_are_asked_for(
    ask: Any, service: FakeService, tmp_path: Path, option: str
) -> None:
    """Also later, into a collection that has the images without them."""
    packed = [b"objects of 0", None, b"", b"objects of 3"]
    column = pa.array(packed, pa.binary())
    lake.write(tmp_path / "lake", VECTORS[:4], MODEL.digest, objects=column)
    command = ("index", "all", "--from", str(tmp_path / "lake"))
    (row,) = ask(*command)["results"]
    assert row["indexed"] == 4
    held = service.collections["all"]
    assert not any(item.objects for item in held.values())
    (row,) = ask(*command, option)["results"]
    assert (row["indexed"], row["replaced"], row["skipped"]) == (2, 2, 2)
    assert [held[f"{n}.jpg"].objects for n in range(4)] == [each or b"" for each in packed]
    for options in ((option,), ()):
        (row,) = ask(*command, *options)["results"]
        assert (row["indexed"], row["skipped"]) == (0, 4)
    assert held["3.jpg"].objects == packed[3], "a run without objects leaves them"


def test_images_of_equal_ids_are_counted(run: Run, tmp_path: Path) -> None:
    """As two tables may have them."""
    ids = [f"{n % 1500}.jpg" for n in range(2500)]
    lake.write(tmp_path / "lake", VECTORS, MODEL.digest, id=ids)
    ran = run("index", "all", "--from", str(tmp_path / "lake"))
    assert ran.status == 0
    assert "1,000 images replaced others that this run had added, because ids occur" in ran.err
    assert "one of the images of each id can be found" in ran.err


def test_images_of_equal_ids_in_one_request_are_refused_and_counted(
    run: Run, service: FakeService, tmp_path: Path
) -> None:
    ids = ["a", "b", "b", "b", "c"]
    lake.write(tmp_path / "lake", VECTORS[:5], MODEL.digest, id=ids)
    counts = {"indexed": 3, "replaced": 0, "failed": 2, "skipped": 0}
    for expected in (counts, {"indexed": 1, "replaced": 1, "failed": 1, "skipped": 3}):
        ran = run("index", "all", "--from", str(tmp_path / "lake"), "--json")
        assert ran.status == 1
        row, error = json.loads(ran.out)["results"]
        assert (row, error["id"]) == ({"collection": "all", **expected}, "b")
        assert "b: an earlier item of the request also has the id 'b'" in ran.err
    assert sorted(service.collections["all"]) == ["a", "b", "c"]


def test_objects_that_a_run_without_them_deletes_are_counted(run: Run, tmp_path: Path) -> None:
    column = pa.array([b"objects", b"objects", None], pa.binary())
    lake.write(tmp_path / "lake", VECTORS[:3], MODEL.digest, objects=column)
    command = ("index", "all", "--from", str(tmp_path / "lake"))
    assert run(*command, "--objects").err.count("objects deleted") == 0
    assert "objects deleted" not in run(*command).err
    ran = run(*command, "--metadata", "owner=ann")
    assert ran.status == 0
    assert "2 images whose metadata or file has changed were replaced, and their obj" in ran.err
    ran = run(*command, "--metadata", "owner=ann", "--objects", "--json")
    assert json.loads(ran.out)["results"][0]["indexed"] == 2, "as the warning says"
    assert "objects deleted" not in ran.err


@pytest.mark.parametrize("before", [False, True])
def test_another_model_is_refused_with_the_services_words(
    run: Run, tmp_path: Path, before: bool
) -> None:
    """Also if the collection has items of the same names."""
    if before:
        lake.write(tmp_path / "before", VECTORS, MODEL.digest)
        assert run("index", "all", "--from", str(tmp_path / "before")).status == 0
    lake.write(tmp_path / "lake", VECTORS, "0" * 64)
    ran = run("index", "all", "--from", str(tmp_path / "lake"))
    assert ran.status == 1
    assert "the vectors were made with another model" in ran.err


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"embedding": None}, "has no embeddings: run samclip batch with --embed"),
        ({}, "part-00000.parquet has no objects: run samclip batch with --embed --regions"),
        (
            {
                "embedding": pa.array([[1.0] * 4] * 2499 + [None], pa.list_(pa.float32(), 4)),
                "objects": [b""] * 2500,
            },
            "part-00002.parquet has rows without an id or an embedding",
        ),
    ],
)
def test_tables_without_a_column_are_named(
    run: Run, tmp_path: Path, columns: Any, words: str
) -> None:
    lake.write(tmp_path / "lake", VECTORS, MODEL.digest, **columns)
    ran = run("index", "all", "--from", str(tmp_path / "lake"), "--objects")
    assert (ran.status, words in ran.err) == (1, True), ran.err


def test_other_files_and_arguments_are_named(run: Run, tmp_path: Path, photo: str) -> None:
    lake.write(tmp_path / "lake", VECTORS[:2], MODEL.digest)
    part = tmp_path / "lake/images/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    for argv, words in (
        ((str(tmp_path / "nothing"),), "no images/*.parquet below"),
        ((str(tmp_path / "lake"),), "part-00000.parquet is not Parquet"),
        ((str(tmp_path / "lake"), photo), "pass the images to index, or --from URL"),
        ((str(tmp_path / "lake"), "--objects", "--tiles", "2"), "add --objects, and no --from"),
    ):
        ran = run("index", "all", "--from", *argv)
        assert (ran.status != 0, words in ran.err) == (True, True), ran.err
    with pytest.raises(SystemExit):
        run("index", "all")


def test_what_a_batch_lacks_is_said(run: Run, tmp_path: Path) -> None:
    """Of two parts that are there, one lacks images, and a third part is not done."""
    lake.write(tmp_path / "lake", VECTORS[:4], MODEL.digest, per_part=2)
    for number, unread in enumerate((0, 1200)):
        lake.state(tmp_path / "lake", number, plan="p", parts=3, unread=unread)
    ran = run("index", "all", "--from", str(tmp_path / "lake"))
    assert ran.status == 0
    url = str(tmp_path / "lake")
    assert f"1,200 images of {url} could not be read, and are not in the collection" in ran.err
    assert f"{url} has 2 of 3 parts: run samclip batch again" in ran.err


def test_tables_of_several_batches_are_refused(run: Run, tmp_path: Path) -> None:
    lake.write(tmp_path / "lake", VECTORS[:4], MODEL.digest, per_part=2)
    for number, plan in enumerate("pq"):
        lake.state(tmp_path / "lake", number, plan=plan)
    ran = run("index", "all", "--from", str(tmp_path / "lake"))
    assert ran.status == 1
    assert "part-00001.parquet is of another batch than" in ran.err


def test_a_table_of_another_schema_is_refused(run: Run, tmp_path: Path) -> None:
    lake.write(tmp_path / "lake", VECTORS[:2], MODEL.digest)
    lake.state(tmp_path / "lake", 0, schema="1")
    ran = run("index", "all", "--from", str(tmp_path / "lake"))
    assert ran.status == 1
    assert "does not state schema 3 of samclip batch" in ran.err
