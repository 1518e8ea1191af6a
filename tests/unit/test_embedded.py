import logging

from services.retrieval.embedded import EmbeddedCollections
from tests.unit.test_engines import D, items


def test_a_damaged_collection_does_not_take_the_others_down(tmp_path, caplog):
    collections = EmbeddedCollections(tmp_path, "m" * 64, D)
    collections.get_or_make("good").upsert(items(1))
    collections.close()
    (tmp_path / "bad.sqlite").write_bytes(b"this is no database" * 100)
    again = EmbeddedCollections(tmp_path, "m" * 64, D)
    assert [d.name for d in again.describe()] == ["good"]
    assert "bad.sqlite" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.ERROR
