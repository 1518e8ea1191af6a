"""Collections whose names differ by capitals alone have files of their own."""

import contextlib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.request.context import NAME
from services.retrieval.database import file_name, stored_name
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import OF_CONCEPTS
from services.retrieval.query import Query
from tests.vectors import MODEL, D, finished, items, vector

names = st.from_regex(NAME, fullmatch=True)
stored = st.one_of(names, st.builds("{}@{}".format, names, names)) | st.builds(
    f"{{}}{OF_CONCEPTS}@{{}}".format, names | st.just(""), names
)


@given(stored)
def test_a_file_name_has_no_capitals_and_is_that_of_one_collection(name):
    file = file_name(name)
    assert stored_name(file) == name
    assert unicodedata.normalize("NFKD", file).casefold() == file
    assert len(f"{file}.usearch.partial.1234567890") <= 255
    assert len(f"{file}.sqlite-wal") <= 255
    if name == name.lower():
        assert file == name


@pytest.mark.parametrize("file", ["Ann", "ann=0", "ann=", "ann=8", "ann=01", "ann=0x1", "ann=zz"])
def test_other_files_are_no_collections(file):
    with pytest.raises(ValueError, match=r"is no name of a collection|invalid literal"):
        stored_name(file)


def filled(directory: Path, *names: str) -> EmbeddedCollections:
    index = EmbeddedCollections(directory, MODEL, D)
    for number, name in enumerate(names):
        tenant, _, own = name.rpartition("@")
        index.of_tenant(tenant).get_or_make(own, "float32").upsert(items(number))
    return index


def held(index: EmbeddedCollections) -> dict[str, str]:
    return {each.name: finished(each.search(Query(vector(1), 1)))[0].id for each in index.every()}


def test_tenants_and_collections_that_differ_by_case_are_apart(tmp_path, caplog):
    names = "Ann@pets", "ann@pets", "ANN@pets", "ann@Pets", "Pets", "pets"
    expected = {name: f"id {number}" for number, name in enumerate(names)}
    for _ in range(2):
        with contextlib.closing(filled(tmp_path, *names)) as index:
            assert held(index) == expected
    files = [path.name for path in tmp_path.glob("*.sqlite")]
    assert len({file.casefold() for file in files}) == len(names)
    (tmp_path / "Other.sqlite").write_bytes(b"whose name is none of a collection's file")
    with contextlib.closing(EmbeddedCollections(tmp_path, MODEL, D)) as index:
        assert "Other.sqlite is ignored" in caplog.text
        assert {each.name for each in index.describe()} == {*names}
        assert index.of_tenant("Ann").drop("pets") == 1
        assert held(index) == {name: id for name, id in expected.items() if name != "Ann@pets"}
