"""Collections in shards: the answers of one vector set, on the servers of a Redis Cluster."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from samclip_core.errors import InvalidRequest, Unavailable
from services.retrieval import backup, restore
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.engine import open_index
from services.retrieval.index import Collections
from services.retrieval.query import Query
from services.retrieval.redis_client import KINDS, connect, key_of
from services.retrieval.redis_engine import Shards, VectorSets, part_names
from services.settings import Settings
from tests import redis_server
from tests.redis_server import RedisServer
from tests.vectors import MODEL, OTHER, D, items, vector, with_objects

FEW = items(*range(60))


def answers(found: Collections, filter: dict[str, str], top_k: int, offset: int) -> list[object]:
    """Return what a collection says about its items, as far as it does not depend on ties."""
    pets = found.get("pets")
    query = Query(vector(5), top_k, offset, filter)
    by_id = Query(pets.vector(pets.items("", 1)[0].id), 3, exclude=pets.items("", 1)[0].id)
    hits = [pets.search(query), pets.search(by_id)]
    objects = pets.search_objects(query) if pets.count_objects() else []
    return [
        len(pets),
        [[(hit.id, round(hit.score, 5), dict(hit.metadata)) for hit in page] for page in hits],
        [(hit.id, round(hit.score, 5), best) for hit, best in objects],
        [item.id for item in pets.items("", 7)],
        [(item.id, item.objects, dict(item.metadata)) for item in pets.stored()],
        pets.holds({item.id for item in FEW[:20]}),
        pets.count_objects(),
        pets.count_objects({"id 1", "id 2", "none"}),
        [item.id for item in pets.listed(["id 9", "none", "id 2", "id 30"])],
    ]


made = st.builds(
    lambda seed, objects: (with_objects if objects else lambda n: items(n)[0])(seed),
    st.integers(0, 59),
    st.booleans(),
)


batches = st.lists(made, min_size=1, max_size=30, unique_by=lambda item: item.id)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shards=st.integers(1, 5),
    added=st.lists(batches, min_size=1, max_size=4),
    deleted=st.sets(st.integers(0, 59), max_size=20),
    where=st.none() | st.integers(0, 59),
    page=st.tuples(st.integers(1, 20), st.integers(0, 20)),
)
def test_shards_change_no_answer(shared_redis, shards, added, deleted, where, page) -> None:
    filter = {} if where is None else {"seed": str(where)}
    url = f"redis://127.0.0.1:{shared_redis.port}/6"
    given, changes = [], list[object]()
    with redis.Redis.from_url(url) as client:
        for count in (0, shards):
            client.flushdb()
            with closing(VectorSets(connect(url), MODEL, D, count)) as found:
                pets = found.get_or_make("pets", "float32")
                pets.upsert(FEW[:1])
                changes.append([pets.upsert(batch) for batch in added])
                changes.append(pets.delete([f"id {seed}" for seed in deleted - {0}]))
                given.append(answers(found, filter, *page))
    assert given[0] == given[1]
    assert changes[:2] == changes[2:]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    kept = "--appendonly", "yes", "--cluster-node-timeout", "2000"
    with redis_server.cluster(tmp_path, *kept) as servers:
        yield servers


def opened(cluster: list[RedisServer], folder: Path, digest: str = MODEL) -> Collections:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    made = Settings(redis_url=url, collection_shards=6, index_dir=folder / "files")
    return open_index(made, digest, D)


def test_a_cluster_has_the_shards_on_all_servers(cluster, tmp_path, monkeypatch) -> None:
    with closing(opened(cluster, tmp_path)) as found:
        pets = found.get_or_make("pets", "float32")
        assert pets.upsert(items(*range(300))) == 0
        counts = []
        for server in cluster:
            with redis.Redis(port=server.port) as client:
                names = client.scan_iter("samclip:index:*:vectors", _type="vectorset")
                counts.append(sum(client.vset().vcard(name) for name in names))
        assert sum(counts) == 300
        assert min(counts) > 60
        for exact in (10_000, 10):  # by comparison, and by the graphs
            monkeypatch.setattr("services.retrieval.query.EXACT", exact)
            found_ids = [found.get("pets").search(Query(vector(n), 1))[0].id for n in range(300)]
            assert sum(id == f"id {n}" for n, id in enumerate(found_ids)) >= 295
        assert [one.name for one in found.describe()] == ["pets"]
        with closing(opened(cluster, tmp_path, OTHER)) as other:
            with pytest.raises(InvalidRequest, match="'pets' was made with model"):
                other.get("pets")
            assert other.drop("pets") == 300
            assert other.describe() == []
            other.get_or_make("pets", "float32").upsert(items(1))
        with pytest.raises(InvalidRequest, match="'pets' was made with model"):
            pets.upsert(items(2))
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("count", [1, 2, 6, 8, 64, 256])
def test_each_shard_lies_in_its_own_share_of_the_slots(count: int) -> None:
    for word in ("00000000", "4fe1a09c", "ffffffff"):
        names = part_names("dogs and cats", word, count)
        slots = [key_slot(key_of(name, kind).encode()) for name in names for kind in KINDS]
        shares = [slot * count // 16384 for slot in slots]
        assert shares == sorted([*range(count)] * len(KINDS))


def test_a_server_that_is_gone_is_unavailable_until_it_is_back(cluster, tmp_path) -> None:
    with closing(opened(cluster, tmp_path)) as found:
        pets = found.get_or_make("pets", "float32")
        pets.upsert(items(*range(100)))
        cluster[2].kill()
        with pytest.raises(Unavailable):
            found.get("pets").search(Query(vector(1), 5))
        cluster[2].start()
        while True:
            try:
                hits = found.get("pets").search(Query(vector(1), 100))
                break
            except Unavailable:
                continue
        assert {hit.id for hit in hits} == {f"id {n}" for n in range(100)}
        assert found.get("pets").upsert(items(*range(100))) == 100


def test_a_backup_moves_collections_into_shards_and_out(cluster, tmp_path) -> None:
    into, out = tmp_path / "into", tmp_path / "out"
    with closing(EmbeddedCollections(tmp_path / "from", MODEL, D)) as files:
        held = files.of_tenant("ann").get_or_make("pets", "float32")
        held.upsert([*items(*range(30)), *map(with_objects, range(30, 40))])
        with into.open("wb") as output:
            assert backup.write(files, output) == 40
    with closing(opened(cluster, tmp_path)) as sharded:
        restore.read(into, sharded, Settings(), 40)
        pets = sharded.of_tenant("ann").get("pets")
        assert isinstance(pets, Shards)
        assert (len(pets), pets.count_objects()) == (40, 30)
        assert pets.search_objects(Query(vector(31), 1))[0][0].id.startswith("id 3")
        with out.open("wb") as output:
            assert backup.write(sharded, output) == 40
    with closing(EmbeddedCollections(tmp_path / "to", MODEL, D)) as files:
        restore.read(out, files, Settings(), 40)
        back = files.of_tenant("ann").get("pets")
        assert (len(back), back.count_objects()) == (40, 30)


def once_before(patched: pytest.MonkeyPatch, owner: type, name: str, do: Callable[[], object]):
    """Do something before the next call of a method."""
    method = getattr(owner, name)

    def called(self, *args, **kwargs):
        patched.setattr(owner, name, method)
        do()
        return method(self, *args, **kwargs)

    patched.setattr(owner, name, called)


@pytest.fixture
def opened_in(shared_redis) -> Iterator[Callable[..., VectorSets]]:
    """Return a function that opens the same Redis as another process would."""
    url = f"redis://127.0.0.1:{shared_redis.port}/6"
    with ExitStack() as stack, redis.Redis.from_url(url) as client:
        client.flushdb()
        yield lambda digest=MODEL, shards=3: stack.enter_context(
            closing(VectorSets(connect(url), digest, D, shards))
        )


def vector_sets(found: VectorSets) -> int:
    return len([*found._client.scan_iter("*:vectors")])


@pytest.mark.parametrize("model", [MODEL, OTHER])
@pytest.mark.parametrize("again", [True, False])
def test_items_added_while_a_collection_is_deleted_leave_nothing(
    opened_in, monkeypatch, model, again
) -> None:
    found, other = opened_in(), opened_in(model)
    pets = found.get_or_make("pets", "float32")
    pets.upsert(items(1, 2, 3))

    def drop() -> None:
        other.drop("pets")
        if again:
            other.get_or_make("pets", "float32").upsert(items(7))

    once_before(monkeypatch, Shards, "_each", drop)
    with pytest.raises(Unavailable, match="deleted or made collection 'pets' meanwhile"):
        pets.upsert(items(4, 5, 6))
    assert [one.count for one in other.describe()] == [1] * again
    assert vector_sets(other) == again
    if again:
        assert np.allclose(other.get("pets").vector("id 7"), vector(7))


def test_items_added_in_a_deletion_leave_nothing(opened_in, monkeypatch) -> None:
    found, other = opened_in(), opened_in()
    found.get_or_make("pets", "float32").upsert(items(1, 2, 3))
    once_before(
        monkeypatch, redis.client.Pipeline, "srem", lambda: found.get("pets").upsert(items(4, 5, 6))
    )
    other.drop("pets")
    assert other.describe() == []
    assert vector_sets(other) == 0


@pytest.mark.parametrize("shards", [0, 3])
def test_a_collection_that_is_made_with_and_without_shards_loses_nothing(opened_in, shards) -> None:
    found, other = opened_in(shards=shards), opened_in(shards=3 - shards)
    pets = found.get_or_make("pets", "float32")
    other.get_or_make("pets", "float32").upsert(items(1))
    with pytest.raises(Unavailable, match="deleted or made collection 'pets' meanwhile"):
        pets.upsert(items(2))
    found.get_or_make("pets", "float32").upsert(items(2))
    for one in (found, other):
        assert [item.id for item in one.get("pets").items("", 9)] == ["id 1", "id 2"]
