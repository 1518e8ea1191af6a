"""Commands about collections."""

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from samclip import cli
from samclip.v1 import samclip_pb2 as pb

from tests.fake_server import FakeService
from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import Captured, Server


def test_collections(ask: Any, photo: str, server: Server) -> None:
    folder = Path(photo).parent
    (folder / "more").mkdir()
    for shade in range(9):
        Image.new("L", (4, 4), shade).save(folder / "more" / f"{shade}.PNG")
    (folder / "notes.txt").write_text("no image")
    assert ask("index", "greys", str(folder))["results"][0]["indexed"] == 10
    assert sorted(len(request.items) for request, _ in server[0].calls) == [2, 8]
    hits = ask("search", "greys", "--text", "more/3.PNG", "--top-k", "2")["results"]
    assert hits[0]["id"] == "more/3.PNG"
    assert len(ask("search", "greys", "--image", photo)["results"]) == 10
    assert len(ask("search", "greys", "--image", photo, "--offset", "7")["results"]) == 3
    assert ask("describe")["results"][0]["count"] == 10
    assert ask("delete", "greys", "grey.png", "--yes")["results"][0]["deleted"] == 1
    assert ask("delete", "greys", "--all", "--yes")["results"][0]["deleted"] == 9


def test_search_by_a_part_and_a_text(ask: Any, photo: str, service: FakeService) -> None:
    ask("index", "greys", photo)
    ask("search", "greys", "--image", photo, "--box", "1", "2", "5", "6", "--with-text", "asleep")
    request = service.calls[-1][0]
    assert request.area.box == pb.Box(x_min=1, y_min=2, x_max=5, y_max=6)
    assert request.with_text == "asleep"


def test_search_for_objects(ask: Any, photo: str, service: FakeService) -> None:
    ask("index", "greys", photo, "--objects", "--tiles", "2")
    assert (service.calls[-1][0].objects, service.calls[-1][0].tiles) == (True, 2)
    command = ("search", "greys", "--text", "grey.png", "--objects", "--min-score", "0.5")
    (row,) = ask(*command)["results"]
    assert (row["id"], row["box"]) == ("grey.png", [4, 0, 8, 6])
    assert service.calls[-1][0].min_score == 0.5
    assert "box" not in ask("search", "greys", "--text", "grey.png")["results"][0]


THUMBNAIL = "data:image/jpeg;base64,aGl0"


@pytest.fixture
def indexed(client: Any, photo: str) -> Path:
    """Index two photographs and an id from elsewhere; return the folder."""
    folder = Path(photo).parent
    (folder / "more").mkdir()
    Image.new("L", (8, 6), 9).save(folder / "more/größe 2.png")
    images = {"grey.png": photo, "more/größe 2.png": folder / "more/größe 2.png", "../x.png": photo}
    small = {
        "more/größe 2.png": {"thumbnail": THUMBNAIL},
        "../x.png": {"thumbnail": THUMBNAIL + "!"},
    }
    client.index("greys", images, metadata=small, objects=True, thumbnails=False)
    return folder


def test_search_writes_its_hits(ask: Any, run: Run, indexed: Path, tmp_path: Path) -> None:
    out, search = tmp_path / "out", ("search", "greys", "--text", "more/größe 2.png")
    ran = run(*search, "--out", str(out))
    files = {path.name: path for path in out.iterdir()}
    assert files.keys() == {"001-größe 2.jpg", "hits.json"}
    assert files["001-größe 2.jpg"].read_bytes() == b"hit"
    assert all(str(path) in ran.out for path in files.values())
    assert "samclip: grey.png: the collection has no thumbnail of it: --root FOLDER" in ran.err
    assert "samclip: ../x.png: the thumbnail is damaged" in ran.err
    assert json.loads((out / "hits.json").read_text()) == json.loads(run(*search, "--json").out)


def test_any_id_names_a_file_of_a_hit(client: Any, photo: str, run: Run, tmp_path: Path) -> None:
    ids = ["日" * 100 + ".jpg", "a\0\nb.jpg", "\0"]
    small = {id: {"thumbnail": THUMBNAIL} for id in ids}
    client.index("odd", dict.fromkeys(ids, photo), metadata=small)
    ran = run("search", "odd", "--text", ids[0], "--out", str(tmp_path / "out"))
    assert ran.status == 0, ran.err
    names = {path.name[4:] for path in (tmp_path / "out").iterdir()}
    assert names == {"日" * 32 + ".jpg", "ab.jpg", "image.jpg", ".json"}


def test_search_copies_the_images_and_cuts_the_objects_out(
    run: Run, indexed: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(b"not to be copied")
    out = tmp_path / "out"
    search = ("search", "greys", "--text", "more/größe 2.png", "--root", str(indexed))
    ran = run(*search, "--out", str(out))
    assert {path.name for path in out.iterdir()} == {
        "001-größe 2.png", "002-grey.png", "hits.json"
    }  # fmt: skip
    assert (out / "002-grey.png").read_bytes() == (indexed / "grey.png").read_bytes()
    assert f"samclip: ../x.png: the id leads out of {indexed}" in ran.err
    ran = run(*search, "--out", str(out), "--objects", "--top-k", "1")
    with Image.open(out / "001-größe 2.cutout.png") as cut:
        assert cut.size == (4, 6)
    (hit,) = json.loads((out / "hits.json").read_text())["results"]
    assert hit["segmentation"]["size"] == [6, 8]
    Image.new("L", (9, 9)).save(indexed / "grey.png")
    ran = run(*search, "--out", str(out), "--objects")
    assert "samclip: grey.png: the photograph has 9×9 pixels, its mask 8×6" in ran.err
    assert "name their folder, not -" in run(*search, "--out", "-").err
    (indexed / "more/größe 2.png").unlink()
    assert "samclip: more/größe 2.png: " in run(*search, "--out", str(out)).err
    assert run(*search).status == 2


@pytest.fixture
def delete(run: Run, server: Server, photo: str) -> Any:
    """Make a collection of two photographs; return a function that deletes from it.

    The function returns the ended command, and the number of remaining items.
    """
    other = Path(photo).with_name("other.png")
    other.write_bytes(Path(photo).read_bytes())
    run("index", "greys", photo, str(other))
    return lambda *argv: (run("delete", "greys", *argv), len(server[0].collections["greys"]))


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        ((), 2),
        (("--yes",), 2),
        (("grey.png", "--all"), 2),
        (("grey.png", "--all", "--yes"), 2),
        (("--all",), 1),
        (("grey.png",), 1),
    ],
)
def test_a_script_that_does_not_say_yes_deletes_nothing(
    delete: Any, argv: tuple[str, ...], status: int
) -> None:
    ran, left = delete(*argv)
    assert (ran.status, left) == (status, 2)
    assert "nothing was deleted" in ran.err
    assert "--yes" in ran.err


@pytest.mark.parametrize(
    ("argv", "question", "answer", "left"),
    [
        ("--all", "all 2 images of 'greys'", "greys", 0),
        ("grey.png", "Delete grey.png from 'greys'?", "yes", 1),
    ],
)
def test_a_person_is_asked_before_anything_is_deleted(
    delete: Any, argv: str, question: str, answer: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ran, kept = delete(argv)
    assert (ran.status, kept) == (1, 2)
    assert question in ran.err
    assert "nothing was deleted" in ran.err
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    ran, kept = delete(argv)
    assert (ran.status, kept) == (0, left)


class Terminal(io.StringIO):
    """A stand-in for a terminal with typed input."""

    def isatty(self) -> bool:
        return True


def test_metadata_is_stored_and_searched_for(ask: Any, photo: str) -> None:
    ask("index", "greys", photo, "--metadata", "owner=ann", "--metadata", "x=a=b")
    search = ("search", "greys", "--text", "grey", "--where", "x=a=b", "--where")
    (row,) = ask(*search, "owner=ann")["results"]
    assert row["metadata"] == {"owner": "ann", "x": "a=b"}
    assert ask(*search, "owner=bob")["results"] == []
    ask("index", "greys", photo, "--metadata", "thumbnail=small/grey.png")
    (row,) = ask("search", "greys", "--text", "grey")["results"]
    assert row["metadata"] == {"thumbnail": "small/grey.png"}  # not one of this command


def stored(service: FakeService) -> dict[str, str]:
    """Return the metadata of the only image of the last request."""
    (item,) = service.calls[-1][0].items
    return dict(item.metadata)


def test_a_thumbnail_is_upright_and_fits_into_the_metadata(
    ask: Any, tmp_path: Path, service: FakeService
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    file = tmp_path / "turned.jpg"
    Image.fromarray(noise).save(file, exif=turned)
    ask("index", "noise", str(file), "--metadata", "owner=ann")
    kept = stored(service)
    assert sum(len(key) + len(value) for key, value in kept.items()) <= 4096
    head, encoded = kept.pop("thumbnail").split(",")
    assert (kept, head) == ({"owner": "ann"}, "data:image/jpeg;base64")
    width, height = Image.open(io.BytesIO(base64.b64decode(encoded))).size
    assert (width / height) == pytest.approx(2 / 3, abs=0.03)
    (row,) = ask("search", "noise", "--text", "turned.jpg")["results"]
    assert row["metadata"] == {"owner": "ann"}


def test_no_thumbnail_where_none_is_wanted_or_fits(
    ask: Any, photo: str, service: FakeService
) -> None:
    ask("index", "greys", photo, "--no-thumbnails")
    assert stored(service) == {}
    notes = {"notes": 4000 * "x"}
    ask("index", "greys", photo, "--metadata", f"notes={notes['notes']}")
    assert stored(service) == notes


def test_a_service_that_takes_less_metadata_gets_no_thumbnails(
    run: Run, tmp_path: Path, service: FakeService
) -> None:
    service.most_metadata = 300
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    given = "index", "greys", str(tmp_path), "--metadata", "owner=ann", "--json"
    ran = run(*given)
    assert (ran.status, json.loads(ran.out)["results"][0]["indexed"]) == (1, 1)
    assert "broken.jpg: not an image" in ran.err
    assert dict(service.collections["greys"]["noise.png"].metadata) == {"owner": "ann"}
    service.most_metadata = 3
    assert "noise.png: the metadata has 8 bytes, at most 3" in run(*given).err


def test_a_long_comment_leaves_room_for_the_thumbnail(
    ask: Any, tmp_path: Path, service: FakeService
) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "said.jpg", comment=b"x" * 5000)
    ask("index", "greys", str(tmp_path))
    assert stored(service).keys() == {"thumbnail"}


def test_a_picture_that_a_service_refuses_is_not_decoded(
    ask: Any, tmp_path: Path, service: FakeService
) -> None:
    Image.new("1", (8001, 8000)).save(tmp_path / "huge.png")
    ask("index", "greys", str(tmp_path))
    assert stored(service) == {}


def test_metadata_without_a_value_is_no_command(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["search", "greys", "--text", "x", "--where", "owner"])
    assert exit_.value.code == 2
    assert "'owner' is not KEY=VALUE" in capsys.readouterr().err


def test_photographs_that_would_share_an_id_are_named_and_none_is_sent(
    run: Run, server: Server, tmp_path: Path
) -> None:
    paths = [tmp_path / folder / "cat.png" for folder in "ab"]
    for shade, path in enumerate(paths):
        path.parent.mkdir()
        Image.new("L", (4, 4), shade).save(path)
    for given in (paths, [path.parent for path in paths]):
        ran = run("index", "greys", *map(str, given))
        assert ran.status == 1
        assert all(str(path) in ran.err for path in paths)
        assert "cat.png" not in server[0].collections.get("greys", {})
    assert run("index", "greys", str(tmp_path)).status == 0
    assert set(server[0].collections["greys"]) == {"a/cat.png", "b/cat.png"}


def test_index_reports_the_photographs_that_it_replaced(ask: Any, photo: str) -> None:
    (row,) = ask("index", "greys", photo, photo)["results"]  # a repeated file is not replaced
    assert (row["indexed"], row["replaced"]) == (1, 0)
    (row,) = ask("index", "greys", photo)["results"]
    assert (row["indexed"], row["replaced"]) == (1, 1)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Make a folder with one photograph, and four files that cannot be indexed."""
    Image.new("L", (4, 4), 5).save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "bad.jpg").write_bytes(b"broken")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / os.fsdecode(b"latin-\xe9.png")).write_bytes((tmp_path / "good.png").read_bytes())
    return tmp_path


def test_index_passes_over_bad_paths(run: Run, server: Server, mixed: Path) -> None:
    ran = run("index", "greys", str(mixed), "--json")
    assert ran.status == 1
    first, *bad = json.loads(ran.out)["results"]
    assert (first["indexed"], first["failed"]) == (1, 4)
    assert [*server[0].collections["greys"]] == ["good.png"]
    errors = {row["id"]: row["error"] for row in bad}
    assert errors.keys() == {"bad.jpg", "empty.jpg", "link.jpg", "latin-\udce9.png"}
    assert errors["bad.jpg"] == "not an image"
    assert "the file is empty" in errors["empty.jpg"]
    assert "the id is not valid UTF-8" in errors["latin-\udce9.png"]
    assert "latin-" in run("index", "greys", str(mixed)).err


def test_concepts(ask: Any, photo: str, service: FakeService) -> None:
    box, other = ("1", "2", "5", "6"), ("0", "0", "3", "3")
    more = ("--not", photo, "--box", *other, "--also", photo, "--box", *other)
    added = ask("concept", "add", "my mug", photo, "--box", *box, *more)
    row = {"name": "my mug", "examples": 3, "model_digest": "d1935"}
    assert added["results"] == [row]
    request = service.calls[-1][0]
    assert [example.negative for example in request.examples] == [False, True, False]
    boxes = [[b.x_min, b.y_min, b.x_max, b.y_max] for b in (e.box for e in request.examples)]
    assert boxes == [[1, 2, 5, 6], [0, 0, 3, 3], [0, 0, 3, 3]]
    assert ask("concept", "list")["results"] == [row]
    assert ask("concept", "delete", "my mug")["results"] == [{"name": "my mug", "deleted": 1}]
    assert ask("concept", "list")["results"] == []
    ask("index", "greys", photo)
    ask("search", "greys", "--concept", "my mug")
    assert service.calls[-1][0].concept == "my mug"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("add mug", "takes an IMAGE with a --box"),
        ("add mug PHOTO", "has no --box"),
        ("add mug PHOTO --box 1 2 3 4 --also PHOTO", "has no --box"),
        ("add mug PHOTO --box 1 2 3 4 --box 1 2 3 4", "one --box after each IMAGE"),
        ("add", "take the NAME"),
        ("list mug", "list takes none"),
        ("delete mug PHOTO", "only that"),
    ],
)
def test_incomplete_concepts_are_usage_errors(
    run: Run, server: Server, photo: str, argv: str, words: str
) -> None:
    ran = run("concept", *(photo if word == "PHOTO" else word for word in argv.split()))
    assert (ran.status, words in ran.err) == (2, True), ran.err
    assert not server[0].calls
