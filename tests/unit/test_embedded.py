import logging

import pytest

from samclip_core.errors import InvalidRequest, NotFound
from services.retrieval.collection import Item
from services.retrieval.index import Collections, Description, check_name
from tests.unit.test_collection import D, items, vector


@pytest.fixture
def collections(tmp_path):
    return Collections(tmp_path, "m" * 64, D)


def test_collections_are_made_found_and_described(collections):
    collections.get_or_make("pets").upsert(items(1, 2))
    collections.get_or_make("cars").upsert(items(3))
    assert len(collections.get("pets")) == 2
    cars, pets = collections.describe()
    assert pets == collections.describe("pets")[0] == Description("pets", 2, D, "m" * 64)
    assert cars.name == "cars"


def test_they_are_loaded_at_the_start(collections, tmp_path):
    collections.get_or_make("a.b").upsert(items(1))
    collections.close()
    again = Collections(tmp_path, "m" * 64, D)
    assert again.get("a.b").search(vector(1), 1)[0].id == "id 1"


def test_an_unknown_one_is_not_found(collections):
    for ask in (collections.get, collections.describe, collections.drop):
        with pytest.raises(NotFound, match="no collection 'pets': index images"):
            ask("pets")


@pytest.mark.parametrize("name", ["", "../pets", "a/b", ".hidden", "-x", "a" * 65, "é", "a\n"])
def test_names_are_those_of_files(name):
    with pytest.raises(InvalidRequest, match="expected a name of 1 to 64"):
        check_name(name)


def test_a_collection_of_another_model_is_refused_but_can_be_dropped(collections, tmp_path):
    collections.get_or_make("pets").upsert(items(1))
    collections.close()
    other = Collections(tmp_path, "n" * 64, D + 1)
    for ask in (other.get, other.get_or_make, other.check_addable):
        with pytest.raises(InvalidRequest, match="made with model mmmmmmmmmmmm"):
            ask("pets")
    assert other.describe("pets")[0].digest == "m" * 64
    assert other.drop("pets") == 1
    other.get_or_make("pets").upsert([Item("x", vector(1).repeat(2)[: D + 1], {})])
    assert other.describe("pets")[0].dimension == D + 1


def test_new_names_are_addable(collections):
    assert collections.check_addable("new") is None
    with pytest.raises(InvalidRequest):
        collections.check_addable("a/b")


def test_a_damaged_collection_does_not_take_the_others_down(collections, tmp_path, caplog):
    collections.get_or_make("good").upsert(items(1))
    collections.close()
    (tmp_path / "bad.sqlite").write_bytes(b"this is no database" * 100)
    again = Collections(tmp_path, "m" * 64, D)
    assert [d.name for d in again.describe()] == ["good"]
    assert "bad.sqlite" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.ERROR
