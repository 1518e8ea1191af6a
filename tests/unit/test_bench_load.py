"""The load generator: its schedule, and both of its loops against a server of this process."""

from collections.abc import AsyncIterator

import aiohttp.web
import numpy as np
import pytest

from tests.bench import traffic
from tests.bench.load import Job, _Answer, _closed_rate, arrivals, measure


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(100, 100, seed=0)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert (gaps > 0).all()
    assert times[-1] < 100
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution


def test_arrivals_depend_on_the_seed_alone() -> None:
    assert np.array_equal(arrivals(5, 10, 1), arrivals(5, 10, 1))
    assert not np.array_equal(arrivals(5, 10, 1), arrivals(5, 10, 2))


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its address, and what it was sent; it refuses every third."""
    got: list[bytes] = []

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
        got.append(await request.read())
        return aiohttp.web.Response(status=503 if len(got) % 3 == 0 else 200)

    app = aiohttp.web.Application()
    app.router.add_post("/embed", answer)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    yield f"{host}:{port}", got
    await runner.cleanup()


async def test_a_closed_loop_sends_new_files(server: tuple[str, list[bytes]]) -> None:
    address, got = server
    job = Job("http", address, path="/embed", clients=2, seconds=0.3, warm_up_s=0)
    outcome = await measure(job)
    assert len(set(got)) == len(got) > 2
    assert all(file.startswith(traffic.files()) for file in got)
    assert outcome.errors == len(got) // 3
    assert "503" in outcome.error
    assert outcome.answered == len(got) - outcome.errors
    assert 0 < len(outcome.latencies_ms) <= outcome.answered


def test_the_rate_of_a_closed_loop_does_not_depend_on_where_batches_fall() -> None:
    """Two clients, answered together every second, and a third one four times as often."""
    together = [_Answer(client, i, i + 1, True) for client in (0, 1) for i in range(3)]
    often = [_Answer(2, i / 4, (i + 1) / 4, True) for i in range(12)]
    assert _closed_rate(together + often) == pytest.approx(6)


async def test_an_open_loop_sends_at_its_times(server: tuple[str, list[bytes]]) -> None:
    address, got = server
    job = Job("http", address, path="/embed", form=True, rate=50, seconds=0.4, warm_up_s=0.1)
    outcome = await measure(job)
    times = arrivals(50, 0.5, 0)
    assert len(got) == len(times)
    assert outcome.due == pytest.approx((times >= 0.1).sum() / 0.4)
    assert all(b'name="image"' in body for body in got)
