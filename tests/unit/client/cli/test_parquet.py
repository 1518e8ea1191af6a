"""Parquet files are read within limits of memory and time, whatever their pages state."""

import io
from pathlib import Path
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
    batches = table.batches(range(len(table.groups)), names, most)
    return [row for batch in batches for row in batch.to_pylist()]


PICTURES = pa.table(
    {
        "image": [{"bytes": bytes([n]) * 50_000, "path": f"{n}.jpg"} for n in range(100)],
        "text": [f"text {n % 7}" for n in range(100)],
        "number": [n / 7 for n in range(100)],
        "tags": [["a", "b"]] * 100,
    }
)


@pytest.mark.parametrize(("compression", "group"), [("none", 7), ("zstd", 100)])
def test_what_arrow_writes_is_read(compression: str, group: int) -> None:
    file = written(PICTURES, compression=compression, row_group_size=group)
    names = ["image.bytes", "image.path", "text", "number"]
    assert rows(file, names) == PICTURES.drop_columns("tags").to_pylist()


WITHOUT_LIMITS = """
import runpy, sys
sys.modules["resource"] = None  # as on Windows
runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize("limits", [True, False])
def test_pages_that_unpack_to_more_than_the_memory_are_refused(
    limits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not limits:
        program = tmp_path / "parquet.py"
        program.write_text(WITHOUT_LIMITS.format(program=parquet.__file__))
        monkeypatch.setattr(parquet, "__file__", str(program))
    monkeypatch.setattr(parquet, "MEMORY_BYTES", 256 * 2**20)
    file = written(pa.table({"image": [bytes(200 * 2**20)], "path": ["x"]}), compression="zstd")
    with pytest.raises(ValueError, match="need too much memory"):
        rows(file, ["image"])
    assert rows(file, ["path"]) == [{"path": "x"}]


def test_rows_take_a_multiple_of_the_bytes_of_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "TABLE_BYTES", 64 * 2**20)
    table = pa.table({"image": [bytes(2**20)] * 100})
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
    options |= {"write_batch_size": 1, "data_page_size": 1}
    assert len(rows(written(table.slice(0, 50), **options), ["image"])) == 50
    with pytest.raises(ValueError, match="would unpack to over 67,108,864 bytes"):
        rows(written(table, **options), ["image"])


def test_a_page_states_no_more_lengths_than_fit_into_memory() -> None:
    """Arrow takes 8 GB for a few bytes that state 2,147,483,647 lengths."""
    paths = pa.table({"path": ["aaaa"] * 100})
    options = {"use_dictionary": False, "column_encoding": {"path": "DELTA_BYTE_ARRAY"}}
    content = written(paths, compression="none", write_statistics=False, **options).read()
    header = bytes([0x80, 1, 4, 100])  # blocks of 128 in 4 parts, 100 values
    forged = bytes([0x80, 1, 4, 0xFF, 0xFF, 0xFF, 0xFF, 7])
    at = content.find(header)
    changed = content[:at] + forged + content[at + len(forged) :]
    with pytest.raises(ValueError, match="need too much memory"):
        rows(io.BufferedReader(io.BytesIO(changed)), ["path"])


def test_large_pages_of_text_are_read() -> None:
    """DuckDB ends a page after a row group, and sentences shrink a hundredfold."""
    table = pa.table({f"text {n}": [f"a cat{' and so on' * 200}"] * 10_000 for n in range(8)})
    options: dict[str, Any] = {"use_dictionary": False, "data_page_size": 2**30}
    found = rows(written(table, compression="zstd", **options), table.column_names, most=256)
    assert len(found) == 10_000
    assert found[-1] == table.slice(9999).to_pylist()[0]


def test_a_value_of_the_dictionary_is_not_repeated_in_memory() -> None:
    """60 MB of one value, 30 times: as a file, a few kB."""
    code = """
value, file = bytes(60 * 2**20), io.BytesIO()
pq.write_table(pa.table({"image": pa.DictionaryArray.from_arrays([0] * 30, [value])}), file,
    compression="zstd", store_schema=False)
del value
table = Table(io.BufferedReader(file))
for number, batch in enumerate(table.batches([0], ["image"], 256)):
    assert len(batch) == 1
    if number == 2:
        break
"""
    imports = (
        "import io, pyarrow as pa, pyarrow.parquet as pq; from samclip.cli.parquet import Table"
    )
    assert growth_mb(imports, code) < 600  # 1,900 if all rows are read at once


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff\xff\xff\x7fPAR1", b"x" * 99])
def test_what_is_not_parquet_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no Parquet"):
        Table(io.BufferedReader(io.BytesIO(content)))


def test_a_file_has_no_more_rows_than_its_bytes_allow() -> None:
    with pytest.raises(ValueError, match="1,000,000 rows, too many for"):
        Table(written(pa.table({"path": pa.nulls(10**6, pa.string())})))


def test_rows_that_do_not_come_in_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "WAIT_S", 0.001)
    with pytest.raises(ValueError, match=r"no rows within 0\.001 s"):
        rows(written(PICTURES), ["text"])


def test_damage_raises_value_errors_alone() -> None:
    """Bytes of a page changed in turn: what is read then has no more than its rows."""
    whole = written(pa.table({"path": ["a.jpg", "b.jpg"]}), compression="none").read()
    for at in range(4, 44, 5):
        changed = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
        try:
            assert len(rows(io.BufferedReader(io.BytesIO(changed)), ["path"])) <= 2
        except ValueError:
            continue
