"""``samclip cache warm`` against a service that records its requests."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from samclip import Photo, Unavailable, cli
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.image import image_key
from services.cache import warm
from tests.fake_server import FakeService, fake_server
from tests.in_process import png

Server = tuple[FakeService, str]


@pytest.fixture
def server() -> Iterator[Server]:
    with fake_server() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make 40 pictures in folders, two in a shard, and a text file."""
    folder = tmp_path / "photographs"
    for number in range(40):
        path = folder / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (folder / "notes.txt").write_text("not a picture")
    with tarfile.open(folder / "shard-0.tar", "w") as shard:
        for name, content in {"a.png": png(50), "a.json": b"{}", "b.png": png(51)}.items():
            add(shard, name, content)
    return folder


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def run(server: Server, source: object, *more: str) -> int:
    return cli.main(["cache", "warm", str(source), "--server", server[1], *more])


@pytest.mark.parametrize("url", [False, True])
def test_every_image_is_sent_once_as_bulk_work(server, root, capsys, url):
    service, _ = server
    assert run(server, root.as_uri() if url else root) == 0
    expected = {image_key(png(number)) for number in (*range(40), 50, 51)}
    assert sorted(service.uploads) == sorted(expected)
    assert {headers["x-samclip-priority"] for _, headers in service.calls} == {"bulk"}
    assert capsys.readouterr().out == "42 embedded, 0 failed\n"
    assert run(server, root) == 0
    assert len(service.uploads) == 42  # the second run uploads nothing


def test_regions_are_searched_only_on_request(server, root):
    service, _ = server
    for more, outputs in (([], {pb.CLIP_POOLED}), (["--regions"], {pb.CLIP_POOLED, pb.REGIONS})):
        service.calls.clear()
        assert run(server, root, *more) == 0
        asked = [call for call, _ in service.calls if isinstance(call, pb.EmbedRequest)]
        assert asked
        assert {*asked[0].outputs} == outputs


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_share_a_source(server, root, capsys, monkeypatch, workers):
    monkeypatch.setattr(warm, "FILES_AT_ONCE", 5)
    service, _ = server
    (root / "empty.jpg").touch()
    (root / os.fsdecode(b"latin-\xe9.png")).write_bytes(png(60))
    assert run(server, root, "--workers", str(workers)) == 1
    assert len(service.uploads) == 43
    out, err = capsys.readouterr()
    assert out == "43 embedded, 1 failed\n"
    assert "empty.jpg: the file is empty" in err


def test_what_cannot_be_read_is_named_and_the_other_images_embedded(server, root, capsys):
    (root / "link.jpg").symlink_to("nowhere")
    shard = root / "shard-0.tar"
    shard.write_bytes(shard.read_bytes()[:-4096])  # cut in b.png
    with tarfile.open(root / "shard-1.tar", "w") as shard:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        shard.addfile(link)
        add(shard, "c.png", png(60))
    assert run(server, root) == 1
    out, err = capsys.readouterr()
    assert out == "42 embedded, 3 failed\n"
    assert "link.jpg: " in err
    assert "shard-0.tar: the shard cannot be read to its end" in err
    assert "shard-1.tar/link.png: " in err
    assert image_key(png(60)) in server[0].uploads


def test_threads_stop_at_the_first_failure_of_the_service(server, root, capsys, monkeypatch):
    monkeypatch.setattr(warm, "FILES_AT_ONCE", 1)
    sent = []

    def refuse(self: Photo, *_: object, **__: object) -> None:
        sent.append(self)
        raise Unavailable(grpc.StatusCode.UNAVAILABLE, "the service is gone", "")

    monkeypatch.setattr(Photo, "features", refuse)
    assert run(server, root, "--workers", "2") == 1
    assert "samclip cache warm: the service is gone" in capsys.readouterr().err
    assert len(sent) < 42


def test_a_source_without_images_is_an_error(server, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("not a picture")
    assert run(server, tmp_path) == 1
    assert "no images found" in capsys.readouterr().err


def test_a_service_that_does_not_answer_is_an_error(root, capsys):
    assert cli.main(["cache", "warm", str(root), "--server", "127.0.0.1:1"]) == 1
    assert "samclip cache warm:" in capsys.readouterr().err
