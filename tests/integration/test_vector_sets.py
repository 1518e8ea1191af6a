"""The index in Redis when Redis fails, and the choice of the engine."""

import contextlib

import pytest
import redis
from redis.client import Pipeline
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest, NotFound, Unavailable
from services.retrieval import app, redis_client
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.engine import open_index
from services.retrieval.query import Query
from services.retrieval.redis_client import connect
from services.retrieval.vector_sets import VectorSets
from services.settings import Settings
from tests import redis_server
from tests.in_process import Caller, served
from tests.ports import free_port
from tests.vectors import MODEL, OTHER, D, finished, items, vector, with_objects

LOST = "the index is unavailable: Redis does not answer, try again"


@pytest.fixture
def opened(own_redis):
    """Return a function that opens the collections in a Redis, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def open_(digest: str = MODEL) -> VectorSets:
            found = VectorSets(connect(own_redis.url), digest, D)
            return stack.enter_context(contextlib.closing(found))

        yield open_


def test_a_lost_redis_is_unavailable_and_heals(opened, own_redis, caplog, monkeypatch):
    monkeypatch.setattr(redis_client, "ANSWER_S", 5)  # another process may have taken its port
    found = opened()
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
        lambda: finished(pets.search(Query(vector(1), 1))),
        lambda: finished(pets.search_objects(Query(vector(1), 1))),
        lambda: pets.items("", 9),
    ):
        with pytest.raises(Unavailable, match=LOST):
            ask()
    own_redis.start()  # empty
    pets.upsert(items(3))
    assert [hit.id for hit in finished(found.get("pets").search(Query(vector(1), 9)))] == ["id 3"]


def test_a_frozen_redis_is_unavailable_and_heals(opened, own_redis, monkeypatch):
    monkeypatch.setattr(redis_client, "ANSWER_S", 0.2)
    found = opened()
    found.get_or_make("pets", "float32").upsert(items(1))
    own_redis.freeze()
    with pytest.raises(Unavailable, match=LOST):
        found.get("pets")
    own_redis.thaw()
    while True:
        with contextlib.suppress(Unavailable):  # a slow machine may need several attempts
            assert finished(found.get("pets").search(Query(vector(1), 1)))[0].id == "id 1"
            break


def test_our_own_mistake_is_no_matter_of_trying_again(opened):
    found = opened()
    found.get_or_make("pets", "float32").upsert(items(1))
    with pytest.raises(redis.ResponseError, match="dimension"):
        finished(found.get("pets").search(Query(vector(1)[:-1], 1)))


def test_a_full_redis_refuses_and_keeps_what_it_has(opened, own_redis, caplog):
    found = opened()
    pets = found.get_or_make("pets", "float32")
    pets.upsert(items(1))
    with connect(own_redis.url) as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(Unavailable, match="is full, read-only or forbids this"):
        pets.upsert(items(2))
    assert "maxmemory" in caplog.records[-1].getMessage()
    assert [hit.id for hit in finished(pets.search(Query(vector(1), 9)))] == ["id 1"]


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
    opened, model, dtype, message
):
    ours, theirs = opened(MODEL + "1" * 64), opened(model)
    late = ours.get_or_make("pets", "int8")
    theirs.get_or_make("pets", dtype).upsert(items(1))
    with pytest.raises(InvalidRequest, match=message):
        late.upsert(items(1, 2))
    assert [item.id for item in theirs.get("pets").items("", 9)] == ["id 1"]


def test_nothing_expires_and_a_dropped_collection_leaves_nothing(opened, own_redis):
    found = opened()
    found.get_or_make("pets", "float32").upsert([*items(1), with_objects(2)])
    with connect(own_redis.url) as client:
        keys = set(client.keys())
        kinds = "model", "vectors", "ids", "counts", "objects"
        parts = {f"samclip:index:{{pets}}:{kind}" for kind in kinds}
        assert keys == {"samclip:index", *parts}
        assert {client.ttl(key) for key in keys} == {-1}
        assert found.drop("pets") == 2
        assert client.keys() == []


def test_a_collection_is_dropped_whole_or_not_at_all(opened, own_redis):
    found = opened()
    found.get_or_make("pets", "float32").upsert(items(1, 2))
    with connect(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-srem")
        with pytest.raises(Unavailable, match="forbids this"):
            found.drop("pets")
        assert [(d.name, d.count) for d in found.describe()] == [("pets", 2)]
        assert len(found.get("pets").items("", 9)) == 2
        client.execute_command("ACL", "SETUSER", "default", "+srem")
    assert found.drop("pets") == 2


def test_a_collection_that_is_dropped_while_items_are_added_leaves_no_name(opened, monkeypatch):
    ours, other = opened(), opened()
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


@pytest.mark.parametrize(
    ("url", "engine", "warning"),
    [
        (None, EmbeddedCollections, ""),
        ("OWN", VectorSets, ""),
        ("OLD", EmbeddedCollections, "has no vector sets"),
        ("redis+cluster://h:1", EmbeddedCollections, "a single server"),
        ("redis+sentinel://h:1/service", EmbeddedCollections, "a single server"),
    ],
)
def test_collections_are_in_a_redis_with_vector_sets_or_else_in_files(
    own_redis, tmp_path, caplog, monkeypatch, url, engine, warning
):
    if url == "OLD":  # an older Redis, or Valkey, rejects the command as unknown
        monkeypatch.setattr("redis.commands.vectorset.commands.VCARD_CMD", "VCARD.UNKNOWN")
    url = own_redis.url if url in ("OWN", "OLD") else url
    settings = Settings(index_dir=tmp_path / "index", redis_url=url)
    with contextlib.closing(open_index(settings, MODEL, D)) as found:
        assert isinstance(found, engine)
    assert settings.index_dir.exists() is (engine is EmbeddedCollections)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(warning)
    assert all(warning in each and str(settings.index_dir) in each for each in messages)


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
            health = await service.health()
            assert (health["index"], health["collections"]) == ("ready", 0)
            assert not settings.index_dir.exists()
        finally:
            server.kill()
        await caller.close()
    await service.backbone.close()
    service.__del__()
