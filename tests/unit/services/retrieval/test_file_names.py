"""Collections whose names differ by capitals alone have files of their own."""

import contextlib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.request.context import NAME
from services.retrieval import file_names
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.file_names import file_name, stored_name
from services.retrieval.index import OF_CONCEPTS
from services.retrieval.query import Query
from tests.vectors import MODEL, D, items, vector

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


@given(names.map(str.swapcase), names)
def test_names_that_differ_by_case_have_files_that_do_not(one, other):
    variants = {one, one.lower(), one.upper(), one.swapcase(), other}
    assert len({file_name(name).casefold() for name in variants}) == len(variants)


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
    return {each.name: each.search(Query(vector(1), 1))[0].id for each in index.every()}


def test_tenants_and_collections_that_differ_by_case_are_apart(tmp_path):
    names = "Ann@pets", "ann@pets", "ANN@pets", "ann@Pets", "Pets", "pets"
    expected = {name: f"id {number}" for number, name in enumerate(names)}
    for _ in range(2):
        with contextlib.closing(filled(tmp_path, *names)) as index:
            assert held(index) == expected
    files = [path.name for path in tmp_path.glob("*.sqlite")]
    assert len({file.casefold() for file in files}) == len(names)
    with contextlib.closing(EmbeddedCollections(tmp_path, MODEL, D)) as index:
        assert {each.name for each in index.describe()} == {*names}
        assert index.of_tenant("Ann").drop("pets") == 1
        assert held(index) == {name: id for name, id in expected.items() if name != "Ann@pets"}


def of_earlier_version(directory: Path, name: str) -> None:
    for path in directory.glob(f"{file_name(name)}.*"):
        path.rename(path.with_name(path.name.replace(file_name(name), name)))


@pytest.mark.parametrize("stops_at", [None, *file_names.SUFFIXES])
def test_files_of_earlier_versions_are_found(tmp_path, monkeypatch, stops_at):
    """Also after a crash, with a log, and if a crash interrupts the renaming itself."""
    index = filled(tmp_path, "Ann@Pets", "bob@pets")
    other = tmp_path / "other"
    other.mkdir()
    for path in tmp_path.glob("*.sqlite*"):
        (other / path.name).write_bytes(path.read_bytes())  # as a crash leaves them
    index.close()
    of_earlier_version(other, "Ann@Pets")
    assert (other / "Ann@Pets.sqlite-wal").stat().st_size > 0
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if stops_at and path.name.endswith(stops_at):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        file_names.names_in(other)
    with contextlib.closing(EmbeddedCollections(other, MODEL, D)) as index:
        assert held(index) == {"Ann@Pets": "id 0", "bob@pets": "id 1"}
    assert not [path for path in other.iterdir() if path.name != path.name.lower()]


def test_a_file_whose_name_is_taken_stays_and_is_named(tmp_path, caplog):
    filled(tmp_path, "Pets").close()
    (tmp_path / "Pets.sqlite").write_bytes(b"older")
    with contextlib.closing(EmbeddedCollections(tmp_path, MODEL, D)) as index:
        assert held(index) == {"Pets": "id 0"}
    assert (tmp_path / "Pets.sqlite").read_bytes() == b"older"
    assert "Pets.sqlite is ignored" in caplog.text
