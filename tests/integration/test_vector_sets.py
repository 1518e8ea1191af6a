"""The index in Redis when Redis fails, and the choice of the engine."""

import contextlib
import logging
from pathlib import Path

import pytest
import redis
from redis.client import Pipeline
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest, NotFound, Unavailable
from services.retrieval import app, vector_sets
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.engine import open_index
from services.retrieval.query import Query
from services.retrieval.vector_sets import VectorSets, connect
from services.settings import Settings
from tests import redis_server
from tests.in_process import Caller, served
from tests.ports import free_port
from tests.vectors import MODEL, OTHER, D, items, vector

LOST = "the index is unavailable: Redis does not answer, try again"


def collections(server: redis_server.RedisServer, digest: str = MODEL) -> VectorSets:
    return VectorSets(connect(server.url), digest, D)


def test_a_lost_redis_is_unavailable_and_heals(own_redis, caplog, monkeypatch):
    monkeypatch.setattr(vector_sets, "ANSWER_S", 5)  # another process may have taken its port
    found = collections(own_redis)
    pets = found.get_or_make("pets", "float32")
    pets.upsert(items(1, 2))
    own_redis.kill()
    for ask in (
        lambda: found.get("pets"),
        found.describe,
        lambda: found.drop("pets"),
        lambda: pets.upsert(items(3)),
        lambda: pets.delete(["id 1"]),
        lambda: pets.vector("id 1"),
        lambda: pets.search(Query(vector(1), 1)),
        lambda: pets.items("", 9),
    ):
        with pytest.raises(Unavailable, match=LOST):
            ask()
    own_redis.start()  # empty
    pets.upsert(items(3))
    assert [hit.id for hit in found.get("pets").search(Query(vector(1), 9))] == ["id 3"]
    found.close()


def test_a_frozen_redis_is_unavailable_and_heals(own_redis, monkeypatch):
    monkeypatch.setattr(vector_sets, "ANSWER_S", 0.2)
    found = collections(own_redis)
    found.get_or_make("pets", "float32").upsert(items(1))
    own_redis.freeze()
    with pytest.raises(Unavailable, match=LOST):
        found.get("pets")
    own_redis.thaw()
    while True:
        with contextlib.suppress(Unavailable):  # a slow machine may need several attempts
            assert found.get("pets").search(Query(vector(1), 1))[0].id == "id 1"
            break
    found.close()


def test_with_redis_own_persistence_collections_survive_its_crash(tmp_path: Path):
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with redis_server.running(tmp_path, *options) as server:
        found = collections(server)
        found.get_or_make("pets", "float32").upsert(items(1, 2, 3))
        found.get("pets").delete(["id 2"])
        server.kill()
        server.start()
        assert [item.id for item in found.get("pets").items("", 9)] == ["id 1", "id 3"]
        hit, _ = found.get("pets").search(Query(vector(3), 9))
        assert (hit.id, hit.metadata) == ("id 3", {"seed": "3"})
        assert found.get("pets").search(Query(vector(3), 9, filter={"seed": "1"}))[0].id == "id 1"
        found.close()


def test_our_own_mistake_is_no_matter_of_trying_again(own_redis):
    found = collections(own_redis)
    found.get_or_make("pets", "float32").upsert(items(1))
    with pytest.raises(redis.ResponseError, match="dimension"):
        found.get("pets").search(Query(vector(1)[:-1], 1))
    found.close()


def test_a_full_redis_refuses_and_keeps_what_it_has(own_redis, caplog):
    found = collections(own_redis)
    pets = found.get_or_make("pets", "float32")
    pets.upsert(items(1))
    with connect(own_redis.url) as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(Unavailable, match="is full, read-only or forbids this"):
        pets.upsert(items(2))
    assert "maxmemory" in caplog.records[-1].getMessage()
    assert [hit.id for hit in pets.search(Query(vector(1), 9))] == ["id 1"]
    found.close()


@pytest.mark.parametrize(
    ("model", "dtype", "message"),
    [
        (OTHER, "int8", "made with model nnnnnnnnnnnn"),
        (MODEL + "1" * 64, "float32", "computed in float32, but this service computes in int8"),
        (MODEL + "2" * 64, "int8", "with graphs 222222222222, this service runs"),
    ],
    ids=["model", "precision", "graphs"],
)
def test_a_collection_that_was_made_otherwise_meanwhile_is_left_alone(
    own_redis, model, dtype, message
):
    ours, theirs = collections(own_redis, MODEL + "1" * 64), collections(own_redis, model)
    late = ours.get_or_make("pets", "int8")
    theirs.get_or_make("pets", dtype).upsert(items(1))
    with pytest.raises(InvalidRequest, match=message):
        late.upsert(items(1, 2))
    assert [item.id for item in theirs.get("pets").items("", 9)] == ["id 1"]
    for found in (ours, theirs):
        found.close()


def test_nothing_expires_and_a_dropped_collection_leaves_nothing(own_redis):
    found = collections(own_redis)
    found.get_or_make("pets", "float32").upsert(items(1, 2))
    with connect(own_redis.url) as client:
        keys = set(client.keys())
        parts = {f"samclip:index:{{pets}}:{part}" for part in ("model", "vectors", "ids")}
        assert keys == {"samclip:index", *parts}
        assert {client.ttl(key) for key in keys} == {-1}
        assert found.drop("pets") == 2
        assert client.keys() == []
    found.close()


def test_a_collection_is_dropped_whole_or_not_at_all(own_redis):
    found = collections(own_redis)
    found.get_or_make("pets", "float32").upsert(items(1, 2))
    with connect(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-srem")
        with pytest.raises(Unavailable, match="forbids this"):
            found.drop("pets")
        assert [(d.name, d.count) for d in found.describe()] == [("pets", 2)]
        assert len(found.get("pets").items("", 9)) == 2
        client.execute_command("ACL", "SETUSER", "default", "+srem")
    assert found.drop("pets") == 2
    found.close()


def test_a_collection_that_is_dropped_while_items_are_added_leaves_no_name(own_redis, monkeypatch):
    ours, other = collections(own_redis), collections(own_redis)
    pets, execute = ours.get_or_make("pets", "float32"), Pipeline.execute

    def dropped_between(pipe: Pipeline) -> list[object]:
        """Redis may serve others between the commands of a pipeline."""
        if pipe.transaction:
            return execute(pipe)
        answers: list[object] = []
        for command in pipe.command_stack:
            pipe.command_stack = [command]
            answers += execute(pipe)
            with contextlib.suppress(NotFound):
                other.drop("pets")
        return answers

    monkeypatch.setattr(Pipeline, "execute", dropped_between)
    pets.upsert(items(1))
    assert len(other) == 0
    for found in (ours, other):
        found.close()


def test_without_redis_the_index_is_files(tmp_path):
    found = open_index(Settings(index_dir=tmp_path), MODEL, D)
    assert isinstance(found, EmbeddedCollections)
    found.close()


def test_a_redis_with_vector_sets_is_taken(own_redis, tmp_path):
    settings = Settings(index_dir=tmp_path / "index", redis_url=own_redis.url)
    found = open_index(settings, MODEL, D)
    assert isinstance(found, VectorSets)
    assert not settings.index_dir.exists()
    found.close()


def test_a_redis_without_vector_sets_is_told_and_left(own_redis, tmp_path, caplog, monkeypatch):
    # An older Redis, or Valkey, rejects the command as unknown.
    monkeypatch.setattr("redis.commands.vectorset.commands.VCARD_CMD", "VCARD.UNKNOWN")
    settings = Settings(index_dir=tmp_path / "index", redis_url=own_redis.url)
    found = open_index(settings, MODEL, D)
    assert isinstance(found, EmbeddedCollections)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "has no vector sets" in record.getMessage()
    assert str(settings.index_dir) in record.getMessage()
    found.close()


@pytest.mark.parametrize("url", ["redis+cluster://h:1", "redis+sentinel://h:1/service"])
def test_collections_stay_in_files_beside_a_redis_of_several_servers(url, tmp_path, caplog):
    settings = Settings(redis_url=url, index_dir=tmp_path)
    with caplog.at_level("WARNING"):
        found = open_index(settings, MODEL, D)
    assert isinstance(found, EmbeddedCollections)
    assert "a single server" in caplog.text
    found.close()


async def test_the_service_starts_without_its_redis_and_heals(settings, tmp_path, caplog):
    server = redis_server.RedisServer(tmp_path)
    settings = settings.model_copy(update={"redis_url": server.url, "inner_grpc_port": free_port()})
    service = app.Retrieval(settings)
    assert "starting without the index" in caplog.records[-1].getMessage()
    assert (await service.health())["index"] == "does not answer"
    async with served(service, port=settings.inner_grpc_port) as port:
        caller = Caller(port)
        request = pb.DescribeRequest()
        assert await caller.refused("Describe", request) == ("UNAVAILABLE", LOST)
        server.start()
        try:
            assert len((await caller("Describe", request)).collections) == 0
            assert (await service.health())["index"] == "ready"
            assert not settings.index_dir.exists()
        finally:
            server.kill()
        await caller.close()
    await service.backbone.close()
    service.__del__()
