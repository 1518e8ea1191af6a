"""``samclip reindex`` against a service whose collections are dicts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from samclip import cli
from samclip.v1 import samclip_pb2 as pb

from services.retrieval import reindex
from tests.fake_server import FakeService, fake_server
from tests.in_process import png


@pytest.fixture
def server() -> Iterator[tuple[FakeService, str]]:
    with fake_server() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, server: tuple[FakeService, str]) -> Path:
    """Make a folder of 70 pictures, and a collection with their names and owners."""
    held = server[0].collections.setdefault("old", {})
    folder = tmp_path / "photographs"
    for number in range(70):
        path = folder / f"{number % 7}" / f"{number} é.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        id = path.relative_to(folder).as_posix()
        held[id] = pb.IndexItem(id=id, metadata={"owner": f"ann {number}"})
    return folder


def run(server: tuple[FakeService, str], root: object, target: str = "new") -> int:
    return cli.main(["reindex", "old", target, "--root", str(root), "--server", server[1]])


def sent(service: FakeService) -> list[str]:
    requests = [request for request, _ in service.calls if isinstance(request, pb.IndexRequest)]
    return [item.id for request in requests for item in request.items]


@pytest.mark.parametrize("url", [False, True])
def test_every_picture_goes_over_with_its_metadata(server, root, capsys, url):
    service, _ = server
    assert run(server, root.as_uri() if url else root) == 0
    old, new = service.collections["old"], service.collections["new"]
    assert new.keys() == old.keys()
    for id, item in new.items():
        assert item.image.encoded == (root / id).read_bytes()
        assert item.metadata == old[id].metadata
    captured = capsys.readouterr()
    assert captured.out == "new: 70 indexed, 0 failed\n"
    assert "70/70" in captured.err


def test_a_run_that_was_stopped_goes_on(server, root):
    service, _ = server
    run(server, root)
    missing = ["0/0 é.png", "6/69 é.png"]
    for id in missing:
        del service.collections["new"][id]
    service.calls.clear()
    assert run(server, root) == 0
    assert sent(service) == missing
    assert len(service.collections["new"]) == 70


def test_a_pipe_in_place_of_a_picture_is_told_and_stops_nothing(server, root, capsys):
    (root / "0/0 é.png").unlink()
    os.mkfifo(root / "0/0 é.png")
    assert run(server, root) == 1
    captured = capsys.readouterr()
    assert captured.out == "new: 69 indexed, 1 failed\n"
    assert "expected a regular file" in captured.err


def test_missing_broken_and_foreign_pictures_are_told_and_the_others_indexed(server, root, capsys):
    service, _ = server
    outside = root.parent / "secret.png"
    outside.write_bytes(png())
    (root / "0/0 é.png").unlink()
    (root / "1/1 é.png").write_bytes(b"broken")
    (root / "2/2 é.png").write_bytes(b"")
    foreign = ["../secret.png", "0/../../secret.png", str(outside)]
    for id in foreign:
        service.collections["old"][id] = pb.IndexItem(id=id)
    assert run(server, root) == 1
    assert len(service.collections["new"]) == 67
    captured = capsys.readouterr()
    assert captured.out == "new: 67 indexed, 6 failed\n"
    for id in foreign:
        assert f"{id}: its id is not a path below the root" in captured.err
    assert "0/0 é.png: [Errno 2]" in captured.err
    assert "1/1 é.png: not an image" in captured.err
    assert "2/2 é.png: the file is empty" in captured.err


@pytest.mark.parametrize("objects", [True, False])
def test_objects_are_found_in_tiles_if_there_were_any(server, root, objects):
    service, address = server
    service.with_objects |= {"old"} if objects else set()
    command = ["reindex", "old", "new", "--root", str(root), "--tiles", "auto"]
    assert cli.main([*command, "--server", address]) == 0
    asked = [request for request, _ in service.calls if isinstance(request, pb.IndexRequest)]
    expected = (True, -1) if objects else (False, 0)
    assert {(request.objects, request.tiles) for request in asked} == {expected}


@pytest.mark.parametrize(
    ("source", "message"), [("no", "no collection 'no'"), ("new", "needs another name")]
)
def test_what_cannot_be_done_is_one_line(server, root, capsys, source, message):
    arguments = [source, "new", "--root", str(root), "--server", server[1]]
    assert reindex.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_an_empty_collection_is_nothing_to_do(server, tmp_path, capsys):
    server[0].collections["old"] = {}
    assert run(server, tmp_path) == 0
    assert capsys.readouterr().out == "new: 0 indexed, 0 failed\n"
