"""What a list or a table may name."""

import pytest

from services.sources.item import beside


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
