"""Parquet files whose pages unpack to gigabytes, or that state what they do not have."""

import io
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samclip.cli import parquet
from samclip.cli.parquet import Table

from tests.memory import growth_mb


def written(table: pa.Table, **options: Any) -> io.BufferedReader:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return io.BufferedReader(io.BytesIO(file.getvalue()))


def rows(file: io.BufferedReader, names: list[str], most: int = 16) -> list[dict[str, Any]]:
    table = Table(file)
    batches = (each for g in range(len(table.groups)) for each in table.batches(g, names, most))
    return [row for batch in batches for row in batch.to_pylist()]


PICTURES = pa.table(
    {
        "image": [{"bytes": bytes([n]) * 50_000, "path": f"{n}.jpg"} for n in range(100)],
        "text": [f"text {n % 7}" for n in range(100)],
        "number": [n / 7 for n in range(100)],
        "tags": [["a", "b"]] * 100,
    }
)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli"])
@pytest.mark.parametrize(("group", "page"), [(7, 2**20), (100, 2**20), (100, 1000)])
def test_what_arrow_writes_is_read(version: str, compression: str, group: int, page: int) -> None:
    file = written(
        PICTURES,
        compression=compression,
        row_group_size=group,
        data_page_size=page,
        data_page_version=version,
        write_batch_size=8,
    )
    names = ["image.bytes", "image.path", "text", "number"]
    assert rows(file, names) == PICTURES.drop_columns("tags").to_pylist()


def test_a_page_of_zeros_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROOM_BYTES", 64 * 2**20)
    zeros = pa.table({"image": [bytes(90 * 2**20)], "path": ["x"]})
    for options in ({}, {"use_dictionary": False}, {"data_page_version": "2.0"}):
        with pytest.raises(ValueError, match="would unpack to 94,37"):
            rows(written(zeros, compression="zstd", **options), ["image"])
        assert rows(written(zeros, compression="zstd", **options), ["path"]) == [{"path": "x"}]


def test_many_pages_unpack_to_a_multiple_of_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 64 * 2**20)
    table = pa.table({"image": [bytes(2**20)] * 100})
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
    options |= {"write_batch_size": 1, "data_page_size": 1}
    assert len(rows(written(table.slice(0, 50), **options), ["image"])) == 50
    with pytest.raises(ValueError, match="would unpack"):
        rows(written(table, **options), ["image"])


ENCODINGS = ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4"])
def test_texts_as_deltas_are_read(encoding: str, version: str, compression: str) -> None:
    """As DuckDB and Spark write them; some are null, and some in a struct."""
    names = [None if n % 5 == 0 else f"photos/{n}.jpg" for n in range(1000)]
    table = pa.table(
        {"path": names, "image": [{"bytes": bytes([n % 256] * n)} for n in range(1000)]}
    )
    file = written(
        table,
        use_dictionary=False,
        column_encoding={"path": encoding, "image.bytes": encoding},
        compression=compression,
        data_page_version=version,
        data_page_size=10_000,
    )
    assert rows(file, ["path", "image"]) == table.to_pylist()


@pytest.mark.parametrize(
    ("encoding", "suffixes"), [(ENCODINGS[0], False), (ENCODINGS[0], True), (ENCODINGS[1], False)]
)
def test_a_page_states_no_more_lengths_than_it_has_values(encoding: str, suffixes: bool) -> None:
    """Arrow takes 8 GB for a few bytes that state 2,147,483,647 lengths."""
    paths = pa.table({"path": ["aaaa"] * 100})
    options = {"use_dictionary": False, "column_encoding": {"path": encoding}}
    content = written(paths, compression="none", write_statistics=False, **options).read()
    header = bytes([0x80, 1, 4, 100])  # blocks of 128 in 4 parts, 100 values
    at = content.find(header, content.find(header) + 1) if suffixes else content.find(header)
    forged = bytes([0x80, 1, 4, 0xFF, 0xFF, 0xFF, 0xFF, 7])
    changed = content[:at] + forged + content[at + len(forged) :]
    with pytest.raises(ValueError, match="2,147,483,647 lengths in a page of 100 values"):
        rows(io.BufferedReader(io.BytesIO(changed)), ["path"])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_large_pages_of_text_are_read(version: str) -> None:
    """DuckDB ends a page after a row group, and sentences shrink a hundredfold."""
    table = pa.table({f"text {n}": [f"a cat{' and so on' * 200}"] * 10_000 for n in range(8)})
    options: dict[str, Any] = {"use_dictionary": False, "data_page_size": 2**30}
    file = written(table, compression="zstd", data_page_version=version, **options)
    found = rows(file, table.column_names, most=256)
    assert len(found) == 10_000
    assert found[-1] == table.slice(9999).to_pylist()[0]


def test_a_page_has_no_more_values_than_its_row_group_has_rows() -> None:
    content = written(pa.table({"path": ["a"] * 100}), use_dictionary=False).read()
    header = bytes([0x15, 200, 1, 0x15, 0])  # 100 values, plain
    assert content.count(header) == 1
    changed = content.replace(header, bytes([0x15, 202, 1, 0x15, 0]))
    with pytest.raises(ValueError, match="more values than rows"):
        rows(io.BufferedReader(io.BytesIO(changed)), ["path"])


def test_a_value_of_the_dictionary_is_not_repeated_in_memory() -> None:
    """60 MB of one value, 30 times: as a file, a few kB."""
    code = """
value, file = bytes(60 * 2**20), io.BytesIO()
pq.write_table(pa.table({"image": pa.DictionaryArray.from_arrays([0] * 30, [value])}), file,
    compression="zstd", store_schema=False)
del value
print(len(file.getvalue()))
table = Table(io.BufferedReader(file))
for batch in table.batches(0, ["image"], 256):
    assert len(batch) == 1
"""
    imports = (
        "import io, pyarrow as pa, pyarrow.parquet as pq; from samclip.cli.parquet import Table"
    )
    assert growth_mb(imports, code) < 600  # 1,900 if all rows are read at once


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff\xff\xff\x7fPAR1", b"x" * 99])
def test_what_is_not_parquet_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no Parquet"):
        Table(io.BufferedReader(io.BytesIO(content)))


def test_a_file_has_no_more_rows_than_its_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = pa.table({"path": pa.nulls(10**6, pa.string())})
    with pytest.raises(ValueError, match="1,000,000 rows, too many for"):
        Table(written(nothing))
    monkeypatch.setattr(parquet, "MOST_ROWS_PER_BYTE", 10**6)
    assert Table(written(nothing)).groups == [10**6]


def test_a_file_of_a_writer_that_pads_its_columns_is_refused() -> None:
    file = written(pa.table({"path": ["x"]}))
    for created, bad in (
        ("parquet-mr", True),
        ("parquet-mr version 1.2.8", True),
        ("parquet-mr version 1.13.1 (build x)", False),
        ("parquet-cpp-arrow version 1.2.8", False),
    ):
        assert bool(parquet.PADDED.match(created)) is bad, created
    assert rows(file, ["path"]) == [{"path": "x"}]


def test_damage_raises_value_errors_alone() -> None:
    """Each byte of a small file changed in turn; what is read then has no more than its rows."""
    whole = written(pa.table({"path": ["a.jpg", "b.jpg"], "n": [1, 2]})).read()
    for at in range(4, len(whole) - 8):
        for value in (0, 255, whole[at] ^ 1):
            changed = whole[:at] + bytes([value]) + whole[at + 1 :]
            with suppress(ValueError, OSError, RuntimeError, pa.ArrowException):
                assert len(rows(io.BufferedReader(io.BytesIO(changed)), ["path"])) <= 16
