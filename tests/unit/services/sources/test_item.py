"""What a list or a table may name, and the states that tell versions of a file apart."""

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from services.sources.item import UNKNOWN, Item, beside, differ, state
from tests.http_server import Handler, serving


@pytest.mark.parametrize(
    ("table", "named", "place"),
    [
        ("/data/list.txt", "a.jpg", "/data/a.jpg"),
        ("/data/list.txt", "/other/a.jpg", "/other/a.jpg"),
        ("/data/list.txt", "file:///other/a.jpg", "file:///other/a.jpg"),
        ("/data/list.txt", "HTTPS://host/a.jpg", "HTTPS://host/a.jpg"),
        ("/data/list.txt", "a::b*.jpg", "/data/a::b*.jpg"),
        ("s3://one/list.txt", "a/b.jpg", "s3://one/a/b.jpg"),
        ("s3://one/list.txt", "s3://two/b.jpg", "s3://two/b.jpg"),
        ("s3://one/list.txt", "http://host/b.jpg", "http://host/b.jpg"),
        ("s3://one/list.txt", "x::file:", "s3://one/x::file:"),
    ],
)
def test_a_list_names_files_beside_it_and_addresses(table: str, named: str, place: str) -> None:
    assert beside(table, named) == place


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("/data/list.txt", "s3://bucket/a.jpg"),
        ("/data/list.txt", "simplecache::http://host/a.jpg"),
        ("/data/list.txt", "ftp://host/a.jpg"),
        ("/data/list.txt", "memory://a.jpg"),
        ("http://host/list.txt", "/etc/passwd"),
        ("http://host/list.txt", "file:///etc/passwd"),
        ("http://host/list.txt", "local:///etc/passwd"),
        ("http://host/list.txt", "FILE:///etc/passwd"),
        ("s3://one/list.txt", "gs://two/a.jpg"),
        ("s3://one/list.txt", "simplecache::s3://two/a.jpg"),
        ("s3://one/list.txt", "/home/a.jpg"),
        ("/data/list.txt", "x" * 70_000),
    ],
)
def test_a_list_lends_nobody_this_process(table: str, named: str) -> None:
    with pytest.raises(ValueError, match=r"protocol|path"):
        beside(table, named)


def test_size_and_time_of_a_file_are_its_state(tmp_path: Path) -> None:
    file = tmp_path / "a::b[1].jpg"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    first = state(str(file))
    assert len(first) == 16
    assert state(f"file://{file}") != UNKNOWN
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 2))
    second = state(str(file))
    file.write_bytes(b"three")
    os.utime(file, ns=(1, 1))
    assert len({first, second, state(str(file))}) == 3
    file.write_bytes(b"one")
    os.utime(file, ns=(7, 1))
    assert state(str(file)) == first


def test_the_state_of_an_object_in_a_store_is_that_of_now() -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/states/a.jpg", b"one")
    first = state("memory://states/a.jpg")
    assert state("memory://states/a.jpg") == first != UNKNOWN
    system.pipe_file("/states/a.jpg", b"two")
    assert state("memory://states/a.jpg") not in (first, UNKNOWN)


@pytest.mark.parametrize(
    "place", ["/nothing", "memory://states/nothing", "simplecache::memory://a", "unknown://a", "\0"]
)
def test_what_cannot_be_asked_is_unknown(place: str) -> None:
    assert state(place) == UNKNOWN


@pytest.mark.parametrize(
    ("before", "after", "known"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}, True),
        ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}, True),
        ({}, {"Content-Length": "7"}, True),
        ({"Content-Length": ""}, {"Content-Length": ""}, False),
    ],
)
def test_a_server_says_by_its_headers_which_version_it_has(
    before: dict[str, str], after: dict[str, str], known: bool
) -> None:
    class Server(Handler):
        headers_now: dict[str, str]

        def do_HEAD(self) -> None:
            self.send_response(200)
            for name, value in ({"Content-Length": "5"} | self.headers_now).items():
                if value:
                    self.send_header(name, value)
            self.end_headers()

    found = []
    with serving(Server) as address:
        for Server.headers_now in (before, before, after):
            found.append(state(f"{address}/a.tar"))
    first, same, other = found
    assert first == same
    assert (first != other, first != UNKNOWN) == (known, known)


def test_an_image_on_the_web_is_asked_for_nothing_but_its_file() -> None:
    asked: list[Any] = []

    class Server(Handler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.answer(b"")

    with serving(Server) as address:
        assert Item("a", f"{address}/a.jpg").state() == UNKNOWN
    assert asked == []


def test_a_file_that_is_unknown_has_not_changed() -> None:
    assert not differ(("a", UNKNOWN, "c"), ("a", "b", UNKNOWN))
    assert differ(("a", "b"), ("a", "c"))
    assert not differ(("a", "b"), iter(["a"])), "a table that is gone names no files"
