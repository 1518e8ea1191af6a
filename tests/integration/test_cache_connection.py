import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.asyncio import RedisCluster

from samclip_core.geometry import Geometry
from services.batching.priority import Priority
from services.cache.connection import RedisLink, close, connect
from services.cache.entry import Entry
from services.cache.shared import OUTPUTS, SharedTier
from services.launch import doctor
from services.observability import metrics
from services.settings import Settings, SettingsError
from tests import redis_server, tls
from tests.ports import free_port
from tests.shown import shown


async def remembers(url: str) -> bool:
    """Return whether a value that is set at this URL can be read back."""
    client = connect(url, timeout_s=20)
    try:
        await client.set("samclip:test", b"value", ex=60)
        return await client.get("samclip:test") == b"value"
    finally:
        await close(client)


async def keeps_entries(url: str) -> bool:
    """Return whether all commands of the cache work on the Redis at this URL."""
    tier, key = SharedTier(RedisLink(url, 20), "test"), "0" * 64
    entry = Entry.of(np.ones((2, 3, 3), np.float32), Geometry(1, 1, 8))
    try:
        async with tier.lease(key, OUTPUTS, Priority()) as elsewhere:
            assert elsewhere is None
            tier.put(key, dict.fromkeys(OUTPUTS, entry))
        await tier.settled()
        found = await tier.get(key, OUTPUTS, Priority())
        return len(found) == len(OUTPUTS) and await tier.state() == "up" and tier._link.write.closed
    finally:
        await tier.close()


async def test_the_memory_of_redis_is_measured_if_its_user_may_ask(tmp_path):
    def measured(kind: str) -> float:
        return shown(metrics.REDIS_BYTES.labels(kind))

    with redis_server.running(tmp_path, "--maxmemory", "9mb") as server:
        link = RedisLink(server.url, 20)
        assert await link.state() == "up"
        assert 0 < measured("used") < measured("limit") == 9 * 2**20
        await link.client.acl_setuser(
            "default", enabled=True, categories=["+@all"], commands=["-info"]
        )
        metrics.REDIS_BYTES.labels("used").set(-1)
        assert await link.state() == "up"
        assert measured("used") == -1
        await link.close()


async def test_a_password_and_a_socket_in_the_file_system(tmp_path):
    socket = tmp_path / "redis.sock"
    options = "--requirepass", "a b", "--unixsocket", str(socket)
    with redis_server.running(tmp_path, *options) as server:
        assert await remembers(f"redis://:a%20b@127.0.0.1:{server.port}/0")
        assert await remembers(f"unix://:a%20b@{socket}?db=1")


@contextmanager
def cluster(directory: Path, *options: str) -> Iterator[redis_server.RedisServer]:
    """Run a cluster of one server."""
    options = "--cluster-enabled", "yes", "--cluster-port", str(free_port()), *options
    with redis_server.running(directory, *options) as server, redis.Redis(port=server.port) as one:
        one.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        while one.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            pass
        yield server


async def test_a_cluster(tmp_path):
    with cluster(tmp_path) as server:
        url = f"redis+cluster://127.0.0.1:{server.port}"
        assert await remembers(url)
        assert await keeps_entries(url)


def with_tls(ca: Path, file: Path, port: int) -> list[str]:
    """Return the options of a server with this certificate."""
    files = ["--tls-ca-cert-file", ca, "--tls-cert-file", file, "--tls-key-file", file]
    return ["--tls-port", str(port), "--tls-auth-clients", "no", *map(str, files)]


@pytest.mark.parametrize(
    ("kind", "run", "options"),
    [("rediss", redis_server.running, []), ("rediss+cluster", cluster, ["--tls-cluster", "yes"])],
)
async def test_tls_is_used_where_the_certificate_is_trusted(tmp_path, kind, run, options):
    ca, other = tls.certificate(tmp_path, "ca"), tls.certificate(tmp_path, "other")
    file, port = tls.certificate(tmp_path, "localhost", ca), free_port()
    url = f"{kind}://localhost:{port}"
    with run(tmp_path, *options, *with_tls(ca, file, port)):
        assert await remembers(f"{url}?ssl_ca_certs={ca}")
        assert await keeps_entries(f"{url}?ssl_ca_certs={ca}")
        for strange in (url, f"{url}?ssl_ca_certs={other}"):
            link = RedisLink(strange, 20)
            assert await link.state() == "down"
            await link.close()
            found = await asyncio.to_thread(doctor.redis, Settings(redis_url=strange))
            assert found.state == "wrong"
            assert found.advice.startswith("end redis_url with ?ssl_ca_certs=FILE")


async def test_a_certificate_for_another_name_is_not_blamed_on_its_ca(tmp_path):
    ca, port = tls.certificate(tmp_path, "ca"), free_port()
    file = tls.certificate(tmp_path, "redis", ca)
    with redis_server.running(tmp_path, *with_tls(ca, file, port)):
        settings = Settings(redis_url=f"rediss://localhost:{port}?ssl_ca_certs={ca}")
        found = await asyncio.to_thread(doctor.redis, settings)
    assert (found.state, "mismatch" in found.found) == ("wrong", True)
    assert "ssl_ca_certs" not in found.advice


@contextmanager
def sentinel(directory: Path, master: int) -> Iterator[int]:
    """Run a sentinel that monitors the server at ``master`` as ``cache``; yield its own port."""
    port = free_port()
    configuration = directory / "sentinel.conf"
    watched = f"sentinel monitor cache 127.0.0.1 {master} 1"
    configuration.write_text(f"port {port}\nbind 127.0.0.1\ndir {directory}\n{watched}\n")
    command = ["redis-server", str(configuration), "--sentinel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        redis_server.wait_until_answering(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


async def test_the_master_that_sentinels_name(tmp_path, shared_redis):
    with sentinel(tmp_path, shared_redis.port) as port:
        absent = free_port()  # a sentinel that does not answer is skipped
        assert await remembers(f"redis+sentinel://127.0.0.1:{absent},127.0.0.1:{port}/cache/0")


def test_tls_and_its_files_are_redis_pys_own():
    client = connect(f"rediss://:secret@cache:6380/0?ssl_ca_certs={__file__}", 1)
    options = client.connection_pool.connection_kwargs
    assert (options["ssl_ca_certs"], options["password"]) == (__file__, "secret")
    assert client.connection_pool.connection_class.__name__ == "SSLConnection"
    assert isinstance(connect("rediss+cluster://cache", 1), RedisCluster)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://:secret@cache", "begins with 'http', expected redis://"),
        ("cache:6379", "expected redis://"),
        ("redis+sentinel://:secret@cache:26379", "needs a service"),
        ("redis://cache:port", "cannot be read"),
        ("redis+sentinel://cache:port/service", "cannot be read"),
        ("rediss://:secret@cache?ssl_ca_certs=/no/ca.pem", "is /no/ca.pem, which is no file here"),
    ],
)
def test_other_forms_are_mistakes_in_the_settings(url, message):
    with pytest.raises(SettingsError, match=message) as caught:
        connect(url, 1)
    assert "secret" not in str(caught.value)
