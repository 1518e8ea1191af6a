import json

import numpy as np
import pytest
import redis
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from services.cache.command import main
from services.cache.entry import Entry, contract, name, pack

OLD = "0" * 64


@pytest.fixture
def client(own_redis):
    with redis.Redis(port=own_redis.port) as client:
        yield client


@pytest.fixture
def current(tiny_checkpoint, monkeypatch, own_redis) -> str:
    """Configure a checkpoint and Redis, and return the checkpoint's digest."""
    monkeypatch.setenv("SAMCLIP_CHECKPOINT", str(tiny_checkpoint))
    monkeypatch.setenv("SAMCLIP_REDIS_URL", own_redis.url)
    return checkpoint.digest(tiny_checkpoint)


def fill(client: redis.Redis, digest: str, images: int) -> int:
    """Write the entries of ``images`` images, and return the bytes per entry."""
    entry = Entry.of(np.zeros((4, 8, 8), np.float32), Geometry(1, 1, 8))
    for image in range(images):
        for output in (pb.SAM, pb.CLIP_POOLED):
            key = name(contract(digest, 8, "float32"), f"{image:064}", output)
            client.set(key, pack(key, entry))
    return len(pack(key, entry))


def test_stats_count_by_checkpoint_and_output(client, current, capsys):
    size = fill(client, current, 3)
    fill(client, OLD, 1)
    client.set("another", "application's")
    assert main(["stats", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["checkpoint"], row["output"]): row for row in found["entries"]}
    assert len(rows) == 4
    row = rows[current[:12], "SAM"]
    assert (row["entries"], row["bytes"], row["contract"]) == (3, 3 * size, "1:8:float32:2")
    assert rows[OLD[:12], "CLIP_POOLED"]["entries"] == 1
    assert found["memory"][0]["used"] > 4 * size
    assert main(["stats"]) == 0
    assert "checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], set()),
        (["--old"], {"current"}),
        (["--digest", OLD[:8]], {"current"}),
        (["--digest", "abcd1234"], {"current", "old"}),
    ],
)
def test_purge_removes_what_is_asked_for_and_nothing_else(client, current, capsys, arguments, left):
    for digest in (current, OLD):
        fill(client, digest, 2)
    client.set("another", "application's")
    assert main(["purge", "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 8 - 4 * len(left)
    keys = {key.decode() for key in client.scan_iter()}
    assert {"current" if current in key else "old" for key in keys if key != "another"} == left
    assert "another" in keys


def test_more_keys_than_are_removed_at_once(client, current, capsys):
    pipeline = client.pipeline()
    for index in range(2500):
        pipeline.set(f"samclip:cache:{OLD}:1:{{{index}}}:SAM", b"")
    pipeline.execute()
    assert main(["purge"]) == 0
    assert capsys.readouterr().out == "2500 entries removed\n"
    assert client.dbsize() == 0


def test_without_a_redis_it_says_how_to_name_one(capsys):
    assert main(["stats"]) == 1
    assert "--redis-url" in capsys.readouterr().err
    assert main(["purge", "--redis-url", "redis://127.0.0.1:1/0"]) == 1
    assert "samclip cache:" in capsys.readouterr().err
    assert main(["purge", "--redis-url", "http://cache"]) == 1
    assert "expected redis://" in capsys.readouterr().err


@pytest.mark.parametrize("digest", ["", "*", "abc", "xyz0"])
def test_a_digest_is_no_pattern(digest, capsys):
    with pytest.raises(SystemExit):
        main(["purge", "--redis-url", "redis://127.0.0.1:1/0", "--digest", digest])
    assert "4 to 64 hex digits" in capsys.readouterr().err
