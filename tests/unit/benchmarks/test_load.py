"""The load generator, against a server in this process."""

from collections import Counter
from collections.abc import AsyncIterator

import aiohttp.web
import pytest

from benchmarks import traffic
from benchmarks.load import Job, _rate, _Seen, measure


class Server:
    """A server that can refuse every third request."""

    def __init__(self) -> None:
        self.address, self.refuses = "", False
        self.got: list[tuple[str, bytes]] = []

    async def answer(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        self.got.append((request.path, await request.read()))
        refused = self.refuses and len(self.got) % 3 == 0
        return aiohttp.web.Response(status=503 if refused else 200)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    app = aiohttp.web.Application(client_max_size=2**24)
    app.router.add_post("/{path:.*}", found.answer)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    found.address = f"{host}:{port}"
    yield found
    await runner.cleanup()


async def test_new_images_are_never_sent_twice(server: Server) -> None:
    server.refuses = True
    job = Job(server.address, clients=2, seconds=0.3, warm_up_s=0, peer="bytes")
    outcome = await measure(job)
    bodies = [body for _, body in server.got]
    assert len(set(bodies)) == len(bodies) > 2
    assert outcome.errors == len(bodies) // 3
    assert "503" in outcome.error
    assert outcome.answered == len(bodies) - outcome.errors
    assert 0 < len(outcome.latencies_ms) <= outcome.answered


async def test_a_day_is_over_after_its_visits(server: Server) -> None:
    day = Job(server.address, "day", clients=3, seconds=float("inf"), warm_up_s=0, visits=20)
    outcome = await measure(day)
    paths = Counter(path for path, _ in server.got)
    assert paths == {"/classify": 20, "/segment": 60, "/search": 20}
    assert outcome.answered == 100
    assert len(outcome.latencies_ms) == 20


async def test_more_clients_than_visits_do_not_wait_for_each_other(server: Server) -> None:
    outcome = await measure(Job(server.address, "day", clients=8, warm_up_s=0, visits=2))
    assert outcome.answered == 10


async def test_a_peer_is_sent_the_file_with_every_question(server: Server) -> None:
    job = Job(server.address, "day", clients=1, warm_up_s=0, visits=1, peer="form")
    await measure(job)
    file = next(traffic.working_day(1))[0].file
    assert [path for path, _ in server.got] == ["/ask"] * 5
    assert [file in body for _, body in server.got] == [True] * 4 + [False]


def test_the_rate_does_not_depend_on_where_batches_fall() -> None:
    """Two clients are answered together every second, and a third four times as often."""
    together = [_Seen(client, 1, 1.0) for client in (0, 1) for _ in range(3)]
    often = [_Seen(2, 1, 0.25) for _ in range(12)]
    assert _rate(together + often) == pytest.approx(6)
    assert _rate([_Seen(0, 5, 2.0)]) == pytest.approx(2.5)
