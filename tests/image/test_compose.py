"""The compose files, by the words of the guide: keys, TLS, Redis, collections, a clean stop."""

import pytest
import samclip

from tests.image.stack import Stack, photograph, until

pytestmark = pytest.mark.image

REVOKED_S = 5
LABELS = ["a cat", "a rocket"]


@pytest.fixture(scope="module")
def ann(stack: Stack) -> str:
    """Add keys before the first start, as the guide says, and start."""
    key = stack.add_key("ann", "read", "index")
    (stack.keys / "prometheus/key").write_text(stack.add_key("prometheus"))
    stack.up()
    return key


def status(stack: Stack, key: str) -> int:
    with stack.http(key) as http:
        return http.get("/metrics").status_code


def test_it_answers_over_http_and_grpc_to_a_key_only(stack: Stack, ann: str) -> None:
    files = {"image": ("cat.jpg", photograph("chelsea"))}
    for key, expected in ((ann, 200), ("", 401)):
        with stack.http(key) as http:
            reply = http.post("/classify", files=files, data={"labels": LABELS})
        assert reply.status_code == expected, reply.text
    with stack.http(ann) as http:  # with keys, any host name will do
        reply = http.get("/openapi.json", headers={"host": "photographs.example"})
        assert reply.status_code == 200, reply.text
    with stack.client(ann) as client:
        assert client.image(photograph("chelsea")).classify(LABELS)[0].label == "a cat"
    with stack.client("none") as client, pytest.raises(samclip.Unauthenticated):
        client.image(photograph("chelsea")).classify(LABELS)


def test_prometheus_scrapes_with_its_own_key_and_finds_alertmanager(stack: Stack, ann: str) -> None:
    expected = {"samclip": "up", "samclip-front-door": "up"}
    until(lambda: stack.targets() == expected, 60, "both targets are up")
    (manager,) = stack.prometheus("alertmanagers")["activeAlertmanagers"]
    assert "alertmanager:9093" in manager["url"]


def test_keys_come_and_go_without_a_restart_and_their_file_keeps_owner_and_mode(
    stack: Stack, ann: str
) -> None:
    file = stack.keys / "service/keys"
    file.chmod(0o640)
    bob = stack.add_key("bob")
    until(lambda: status(stack, bob) == 200, REVOKED_S, "a new key is accepted")
    stack.compose("run", "--rm", "-T", "keys", "remove", "bob")
    until(lambda: status(stack, bob) == 401, REVOKED_S, "a removed key is refused")
    found = file.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (10001, 0o640)
    assert bob not in file.read_text()


def test_redis_dies_and_returns(stack: Stack, ann: str) -> None:
    """Answers need no Redis, and collections are not in it."""
    with stack.client(ann) as client:
        client.index("pets", {"cat": photograph("chelsea")})
        stack.compose("kill", "redis")
        assert client.image(photograph("rocket")).classify(LABELS)[0].label == "a rocket"
        assert [hit.id for hit in client.search("pets", text="a cat")] == ["cat"]
        stack.compose("start", "redis")


def test_collections_are_restored_from_a_backup(stack: Stack, ann: str) -> None:
    with stack.client(ann) as client:

        def found() -> list[tuple[str, float]]:
            return [(hit.id, round(hit.score, 5)) for hit in client.search("pets", text="a cat")]

        client.index("pets", {name: photograph(name) for name in ("rocket", "coffee")})
        before = found()
        backup = stack.piped("exec", "-T", "samclip", "samclip", "backup", "-")
        assert client.delete("pets", ["rocket"]) == 1
        assert found() != before
        stack.piped("exec", "-T", "samclip", "samclip", "restore", "-", given=backup)
        assert found() == before
        assert len(before) == 3


def test_a_stop_is_clean_and_a_start_finds_collections_and_rotated_keys(
    stack: Stack, ann: str
) -> None:
    stack.compose("stop")
    assert stack.state("samclip")["ExitCode"] == 0  # 137 if the time of grace was used up
    stack.compose("run", "--rm", "-T", "keys", "remove", "ann")
    new = stack.add_key("ann", "read", "index")
    stack.up()
    assert [status(stack, key) for key in (ann, new)] == [401, 200]
    with stack.client(new) as client:
        assert client.search("pets", text="a cat")[0].id == "cat"
