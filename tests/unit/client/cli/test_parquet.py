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


def test_a_page_of_zeros_is_not_unpacked() -> None:
    zeros = pa.table({"image": [bytes(90 * 2**20)], "path": ["x"]})
    for options in ({}, {"use_dictionary": False}, {"data_page_version": "2.0"}):
        with pytest.raises(ValueError, match="would unpack to 94,37"):
            rows(written(zeros, compression="zstd", **options), ["image"])
        assert rows(written(zeros, compression="zstd", **options), ["path"]) == [{"path": "x"}]


def test_many_pages_unpack_to_a_multiple_of_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": [bytes(2**20)] * 100})
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
    options |= {"write_batch_size": 1, "data_page_size": 1}
    assert len(rows(written(table.slice(0, 50), **options), ["image"])) == 50
    with pytest.raises(ValueError, match="would unpack"):
        rows(written(table, **options), ["image"])


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_encodings_that_state_lengths_of_their_own_are_refused(encoding: str) -> None:
    table = pa.table({"path": ["a.jpg", "b.jpg"]})
    file = written(table, use_dictionary=False, column_encoding={"path": encoding})
    with pytest.raises(ValueError, match=r"encoding [67], expected PLAIN"):
        rows(file, ["path"])


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
