"""Collections in a bucket, which processes share: a local server of S3 stands for it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic, sleep

import httpx
import pytest

from samclip_core.errors import InvalidRequest, Unavailable
from services.retrieval import tables
from services.retrieval.index import Collections
from services.retrieval.query import Query
from services.retrieval.registry import Registry
from services.settings import Settings
from tests.faults import relay
from tests.ports import free_port
from tests.vectors import MODEL, D, items, vector, with_objects

pytest.importorskip("moto", reason="moto is not installed (pip install -e '.[dev]')")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        end = monotonic() + 60
        while monotonic() < end:
            try:
                httpx.put(f"{url}/bucket").raise_for_status()
                break
            except httpx.TransportError:
                sleep(0.1)
        yield url
        process.kill()


@pytest.fixture
def place(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tables, "REQUESTS", {"timeout": "100s"})  # of a slow machine's server
    return f"s3://bucket/{request.node.name}"


def opened(place: str) -> Collections:
    settings = Settings(index_dir=place)
    assert settings.index_dir == place
    return Collections(Registry(settings.index_dir), MODEL, D)


def test_replicas_share_what_a_bucket_has(place, monkeypatch):
    monkeypatch.setattr(tables, "OTHERS_WITHIN", tables.timedelta(0))
    ours, theirs = opened(place), opened(place)
    ours.get_or_make("pets", "float32").upsert([with_objects(1), *items(2)])
    found = theirs.get("pets")
    assert {hit.id for hit in found.search(Query(vector(1), 9))} == {"id 1", "id 2"}
    assert [hit.id for hit, _ in found.search_objects(Query(vector(1), 9))] == ["id 1"]
    assert found.upsert([with_objects(2), *items(3)]) == 1
    pets = ours.get("pets")
    assert (len(pets), pets.count_objects()) == (3, 6)
    assert [item.id for item in pets.items("id 1", 9)] == ["id 2", "id 3"]
    assert theirs.drop("pets") == 3
    assert ours.describe() == []
    with pytest.raises(Unavailable, match="deleted or made collection 'pets' meanwhile"):
        pets.upsert(items(4))


def test_replicas_that_make_a_collection_at_once_have_one(place):
    ours, theirs = opened(place), opened(place)
    assert ours.find("pets") is theirs.find("pets") is None
    first = ours.registry.make("pets", MODEL, D, "float32")
    second = theirs.registry.make("pets", MODEL, D, "float32")
    assert first.entry == second.entry
    first.upsert(items(1), MODEL + "1" * 64)
    with pytest.raises(InvalidRequest, match="cannot be compared"):
        second.upsert(items(2), MODEL + "2" * 64)
    assert second.upsert(items(1, 3), MODEL) == 1


@pytest.mark.parametrize("refuses", ["bucket", "keys", "connection"])
def test_a_bucket_that_refuses_loses_nothing_and_is_used_again(place, server, monkeypatch, refuses):
    """Its keys have expired, it does not answer, or there is none; later it is as before."""

    def authenticate(after: str) -> Callable[[], object]:
        url = f"{server}/moto-api/reset-auth"
        return lambda: httpx.post(url, content=after).raise_for_status()

    with relay.running(int(server.rpartition(":")[2])) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        if refuses == "bucket":
            with pytest.raises(Unavailable, match="check the disk, or the bucket and its cred"):
                opened(place.replace("bucket", "none"))
            return
        ours = opened(place)
        pets = ours.get_or_make("pets", "float32")
        pets.upsert(items(1, 2))
        monkeypatch.setattr(tables, "REQUESTS", {"timeout": "5s", "client_max_retries": "0"})
        refuse, allow = {
            "keys": (authenticate("0"), authenticate("inf")),
            "connection": (between.cut, between.mend),
        }[refuses]
        refuse()
        try:
            for change in (partial(pets.upsert, items(3)), partial(pets.delete, ["id 1"])):
                with pytest.raises(Unavailable, match="check the disk, or the bucket and its cred"):
                    change()
            with pytest.raises(Unavailable):
                opened(place)
        finally:
            allow()
        assert {hit.id for hit in pets.search(Query(vector(1), 9))} == {"id 1", "id 2"}
        assert (pets.upsert(items(2, 3)), len(opened(place).get("pets"))) == (1, 3)
