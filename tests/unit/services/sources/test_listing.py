"""Parts of sources, and the images that are read from each."""

import base64
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samclip.cli import places

from services.sources import listing, tables
from services.sources.item import Columns, Item, SourceError
from services.sources.listing import items, parts
from tests.http_server import Handler, serving
from tests.photographs import write_shard

USUAL = Columns()


def read(sources: Sequence[object], size: int = 2, columns: Columns = USUAL) -> list[Item]:
    """Return all images of the sources, by way of the plan's JSON."""
    listed = json.loads(json.dumps([*parts([*map(str, sources)], columns, size)]))
    found = [[*items(part)] for part in listed]
    for part, some in zip(listed, found, strict=True):
        assert part["kind"] == "shard" or len(some) == part["count"] <= size
    return [item for some in found for item in some]


def contents(found: Sequence[Item]) -> dict[str, bytes]:
    return {item.id: item.read() for item in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of files whose content is their name."""
    for name in ("b.jpg", "a/c.PNG", "a/d.webp", ".hidden/e.jpg", "notes.md", "f.jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "photos"


NAMES = ["a/c.PNG", "a/d.webp", "b.jpg", "f.jpg"]


def test_a_folder_is_listed_in_order_without_what_is_no_image(folder: Path) -> None:
    found = read([folder])
    assert [item.id for item in found] == NAMES
    assert [item.source for item in found] == [str(folder / name) for name in NAMES]
    assert contents(found) == {name: name.encode() for name in NAMES}


def test_a_file_a_pattern_and_a_list_are_sources(folder: Path) -> None:
    """A list may be of Windows; a pattern leaves hidden files out."""
    (folder / "a/.g.PNG").touch()
    windows = f"\ufeffa/d.webp\r\n\r\n{folder}/b.jpg\r\n"
    (folder / "list.txt").write_bytes(windows.encode())
    found = read([folder / "f.jpg", folder / "*/*.PNG", folder / "list.txt"], size=3)
    ids = ["f.jpg", "a/c.PNG", "a/d.webp", f"{folder}/b.jpg"]
    assert [item.id for item in found] == ids
    assert [item.read().decode() for item in found] == ["f.jpg", "a/c.PNG", "a/d.webp", "b.jpg"]


def test_files_of_several_sources_have_different_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one/1.jpg", "two/1.jpg", "two/more/1.jpg", "b[1]/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        write_shard((tmp_path / name).parent / "s.tar", {"x": {"jpg": name.encode()}})
    given = ["one", "./two/", "two/*/1.jpg", "b[1]/1.jpg", "b[1]/s.tar"]
    folders = ["one/1.jpg", "one/s.tar/x.jpg", "two/1.jpg", "two/more/1.jpg"]
    folders += ["two/more/s.tar/x.jpg", "two/s.tar/x.jpg"]
    assert sorted(item.id for item in read(given)) == sorted(
        [*folders, "two/more/1.jpg", "b[1]/1.jpg", "b[1]/s.tar/x.jpg"]
    )


def test_ids_are_paths_below_the_folder_that_all_sources_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p/x.jpg", "p/q/x.jpg", "p/q/y.jpg", "q/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for given, ids in (
        (["p/**/x.jpg", "q"], ["p/x.jpg", "p/q/x.jpg", "q/x.jpg"]),
        (["p/*x.jpg", "q"], ["p/x.jpg", "q/x.jpg"]),
        (["p/x.jpg"], ["x.jpg"]),
        (["p/q/x.jpg", "p/q/y.jpg"], ["x.jpg", "y.jpg"]),
        (["p/q/*.jpg"], ["x.jpg", "y.jpg"]),
        (["p/x.jpg", "p/q/y.jpg"], ["x.jpg", "q/y.jpg"]),
        ([f"{tmp_path}/p/q", "../" + tmp_path.name + "/q/"], ["p/q/x.jpg", "p/q/y.jpg", "q/x.jpg"]),
        ([f"file://{tmp_path}/p/q", "q"], ["p/q/x.jpg", "p/q/y.jpg", "q/x.jpg"]),
    ):
        assert sorted(item.id for item in read(given)) == sorted(ids), given


def test_sources_without_a_common_folder_begin_with_their_buckets(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("red/a/1.jpg", "blue/a/1.jpg"):
        memory.pipe(f"/{name}", b"")
    (tmp_path / "1.jpg").touch()
    found = read(["memory://red/a", "memory://blue/a/*.jpg"])
    assert [item.id for item in found] == ["red/a/1.jpg", "blue/a/1.jpg"]
    assert [item.id for item in read(["memory://red/a", "memory://red/a/1.jpg"])] == 2 * ["1.jpg"]
    found = read(["memory://red/a", tmp_path, "https://host/c.jpg", "http://host?1"])
    ids = ["red/a/1.jpg", f"{tmp_path}/1.jpg"[1:], "host/c.jpg", "host?1"]
    assert [item.id for item in found] == ids


def test_a_folder_at_a_url_is_listed_as_one_on_a_disk(folder: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path}/photos"
    fsspec.filesystem("memory").put(f"{folder}/", f"{tmp_path}/photos", recursive=True)
    found = read([url])
    assert contents(found) == contents(read([folder]))
    assert found[0].source == f"{url}/a/c.PNG"


def test_photographs_in_other_formats_are_named_as_problems(folder: Path) -> None:
    (folder / "g.heic").touch()
    (problem,) = (item for item in read([folder]) if item.problem)
    assert problem.id == "g.heic"
    assert "convert it to .jpeg" in problem.problem


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes")
def test_a_name_of_any_bytes_and_patterns_is_read(tmp_path: Path) -> None:
    for name in (b"\xff[1].jpg", b"a::b*.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    assert sorted(item.read() for item in read([tmp_path])) == [b"a::b*.jpg", b"\xff[1].jpg"]


def test_images_are_fetched_from_addresses(tmp_path: Path) -> None:
    class Server(Handler):
        def do_GET(self) -> None:
            self.answer(self.path.encode(), content_type="image/jpeg")

    with serving(Server) as address:
        (tmp_path / "list.txt").write_text(f"{address}/a.jpg?x=1\n{address}/b\n")
        found = read([tmp_path / "list.txt", f"{address}/c.jpg"])
        assert [item.read() for item in found] == [b"/a.jpg?x=1", b"/b", b"/c.jpg"]
    assert found[0].id == f"{address}/a.jpg?x=1"


def test_a_shard_is_read_without_extracting_it(tmp_path: Path) -> None:
    samples = {name: {"jpg": name.encode(), "json": b"{}"} for name in ("x", "y", "z")}
    write_shard(tmp_path / "one/s.tar", samples)
    found = read([tmp_path])
    assert contents(found) == {f"one/s.tar/{name}.jpg": name.encode() for name in samples}
    assert found[0].source == f"{tmp_path}/one/s.tar/x.jpg"


def test_a_name_twice_in_a_shard_is_a_problem(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for content in (b"one", b"two"):
            member = tarfile.TarInfo("x.jpg")
            member.size = 3
            shard.addfile(member, io.BytesIO(content))
    first, second = read([tmp_path / "s.tar"])
    assert first.read() == b"one"
    assert "two images of this name" in second.problem


ROWS: list[dict[str, Any]] = [
    {"id": "one", "image": b"1", "owner": "ann", "year": 1999, "tags": ["a"], "wide": True},
    {"id": "two", "image": b"2", "owner": None, "year": 2000, "tags": [], "wide": False},
    {"id": "three", "image": b"3", "owner": "bob", "year": 2001, "tags": [], "wide": None},
    {"id": "four", "image": None, "owner": "bob", "year": 2001, "tags": [], "wide": None},
    {"id": "five", "image": b"5", "owner": "bob", "year": 2001, "tags": [], "wide": None},
]


@pytest.mark.parametrize(("group", "size"), [(1, 2), (1, 50), (3, 1), (3, 4), (5, 2), (100, 50)])
def test_rows_of_a_parquet_file_do_not_depend_on_its_groups(
    tmp_path: Path, group: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet", row_group_size=group)
    found = read([tmp_path / "t.parquet"], size)
    assert [item.id for item in found] == ["one", "two", "three", "four", "five"]
    assert [item.encoded for item in found] == [b"1", b"2", b"3", None, b"5"]
    assert [item.source for item in found] == [f"{tmp_path}/t.parquet#{n}" for n in range(5)]
    assert found[0].metadata == {"owner": "ann", "year": "1999", "wide": "true"}
    assert "no path and no bytes" in found[3].problem


def test_columns_can_be_named_and_paths_are_relative_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    rows = [{"picture": "x.jpg", "number": 7}, {"picture": f"{tmp_path}/x.jpg", "number": 8}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = read([tmp_path / "t.parquet"], columns=Columns("picture", "number"))
    assert contents(found) == {"7": b"x", "8": b"x"}
    with pytest.raises(SourceError, match="columns picture, number: name the one"):
        read([tmp_path / "t.parquet"])
    with pytest.raises(SourceError, match="no column 'other'"):
        read([tmp_path / "t.parquet"], columns=Columns("other"))


def test_a_table_of_hugging_face_has_its_images_in_a_struct(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b"x", "path": "x.jpg"}, "label": 3}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (item,) = read([tmp_path / "t.parquet"])
    assert (item.read(), item.metadata) == (b"x", {"label": "3"})


@pytest.mark.parametrize("size", [1, 2, 10])
def test_lines_of_json_have_paths_or_data(tmp_path: Path, size: int) -> None:
    (tmp_path / "é.jpg").write_bytes(b"x")
    data = "data:image/jpeg;base64," + base64.b64encode(b"y").decode()
    lines = [{"path": "é.jpg", "owner": "ann"}, {"path": data}, {"path": "data:,!"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    text += "{\n" + "[" * 100_000 + "\n"
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8")
    path, inline, damaged, broken, deep = read([tmp_path / "t.jsonl"], size)
    assert (path.id, path.read(), path.metadata) == ("é.jpg", b"x", {"owner": "ann"})
    assert (inline.id, inline.read()) == (f"{tmp_path}/t.jsonl#1", b"y")
    assert "data URL is damaged" in damaged.problem
    assert "#3: not a line of JSON" in broken.problem
    assert "#4: not a line of JSON" in deep.problem


def test_a_damaged_first_line_is_a_problem_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "t.jsonl").write_text("9" * 5000 + '\n[]\n{"path": "x.jpg"}\n')
    digits, array, good = read([tmp_path / "t.jsonl"], 3)
    assert "#0: not a line of JSON" in digits.problem
    assert "expected a JSON object" in array.problem
    assert good.read() == b"x"


@pytest.mark.parametrize("size", [1, 5])
def test_a_line_of_any_length_takes_no_memory(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_LINE_BYTES", 100)
    (tmp_path / "x.jpg").write_bytes(b"x")
    lines = ['{"path": "x.jpg"}', '{"path": "' + "x" * 3 * 2**20 + '"}', '{"path": "x.jpg"}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    first, long, last = read([tmp_path / "t.jsonl"], size)
    assert "a line longer than" in long.problem
    assert first.read() == last.read() == b"x"
    monkeypatch.setattr(listing, "MOST_NAME_BYTES", 10)
    (tmp_path / "t.txt").write_text("x.jpg\n" + 3 * 2**20 * "x" + "\nx.jpg")
    first, long, last = read([tmp_path / "t.txt"], size)
    assert "a line longer than" in long.problem
    assert first.read() == last.read() == b"x"


def test_a_cell_that_cannot_be_read_harms_no_other(tmp_path: Path) -> None:
    """No UTF-8 in metadata and a path, and a date after 9999, as Python has none."""
    (tmp_path / "x.jpg").write_bytes(b"x")
    encoded = pa.array([b"\xff", b"\xff"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, encoded.buffers())
    days = pa.array([0, 2**31 - 1], pa.date32())
    table = pa.table({"path": ["x.jpg", "x.jpg"], "text": texts, "day": days})
    pq.write_table(table, tmp_path / "t.parquet")
    for item in read([tmp_path / "t.parquet"]):
        assert item.read() == b"x"
        assert item.metadata == {"text": "\udcff"}
    good, bad = read([tmp_path / "t.parquet"], columns=Columns("path", "day"))
    assert (good.id, good.read()) == ("1970-01-01", b"x")
    assert bad.problem


def test_what_could_not_be_read_differs_from_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a.jpg\nsimplecache::http://host/a.jpg\n")
    missing, refused = read([tmp_path / "x.txt"])
    with pytest.raises(FileNotFoundError):
        missing.read()
    with pytest.raises(ValueError, match="the protocol simplecache::http"):
        refused.read()
    write_shard(tmp_path / "s.tar", {"x": {"jpg": b"x"}})
    (part,) = parts([str(tmp_path / "s.tar")], USUAL, 2)
    (tmp_path / "s.tar").unlink()
    (gone,) = items(part)
    assert gone.again
    with pytest.raises(OSError, match="the shard cannot be read to its end: No such file"):
        gone.read()


def test_lines_may_be_blank_before_the_first_object(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "t.jsonl").write_text('\n\n\n{"path": "x.jpg"}\n')
    listed = [*parts([str(tmp_path / "t.jsonl")], USUAL, 2)]
    assert [item.read() for part in listed for item in items(part)] == [b"x"]


def test_a_table_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"t\.parquet is not Parquet"):
        read([tmp_path / "t.parquet"])


def test_a_table_that_is_damaged_does_not_end_a_list(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    (tmp_path / "t.jsonl").write_text("no JSON\n")
    (tmp_path / "good.jsonl").write_text('{"path": "x.jpg"}\n')
    (tmp_path / "x.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.parquet")
    names = ["t.parquet", "x.jpg", "t.jsonl", "pipe.parquet", "good.jsonl"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    found = read([tmp_path / "list.txt"])
    ids = ["t.parquet", "x.jpg", f"{tmp_path}/t.jsonl#0", "pipe.parquet", "x.jpg"]
    assert [(item.id, bool(item.problem)) for item in found] == [(id, id != "x.jpg") for id in ids]


@pytest.mark.parametrize("status", [403, 404])
def test_an_address_without_an_image_is_asked_once(status: int) -> None:
    asked = []

    class Server(Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.answer(b"", status=status)

    with serving(Server) as address, pytest.raises(OSError, match=f"answered {status}"):
        places.read(f"{address}/a.jpg")
    assert asked == ["/a.jpg"]


@pytest.mark.parametrize("given", ["nothing", "no*thing", "empty", "unknown://x"])
def test_a_source_without_images_is_an_error(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=given.replace("*", r"\*")):
        read([given if "://" in given else tmp_path / given])


def test_a_file_is_read_again_when_the_disk_or_the_network_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "WAIT_S", 0)
    calls: list[int] = []

    def fails(times: int) -> int:
        calls.append(times)
        if len(calls) <= times:
            raise ConnectionError("reset")
        return len(calls)

    assert places.retried(lambda: fails(2)) == 3
    calls.clear()
    with pytest.raises(ConnectionError):
        places.retried(lambda: fails(3))
    assert len(calls) == 3
