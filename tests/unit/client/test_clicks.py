"""Sessions of clicks against a service with known answers."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
import samclip

from tests.fake_server import FakeService
from tests.unit.client.conftest import Server, png
from tests.unit.client.test_client import rectangle


@pytest.fixture
def photo(client: samclip.Client) -> samclip.Photo:
    return client.image(png())


def sent(service: FakeService) -> list[str]:
    """Return what each message of the sessions held."""
    return [
        " ".join(
            ["image"] * message.HasField("image")
            + ["restart"] * message.restart
            + [f"{'-' if p.negative else '+'}{p.x:g},{p.y:g}" for p in message.points]
            + ["box"] * message.HasField("box")
        )
        for message, _ in service.calls
    ]


def test_each_click_has_a_mask(service: FakeService, photo: samclip.Photo) -> None:
    photo.embed()
    service.calls.clear()
    with photo.clicks() as session:
        assert session.mask is None
        first = session.click(5, 7)
        np.testing.assert_array_equal(first.array, rectangle(0, 0, 5, 7))
        second = session.click(9, 3, negative=True)
        assert second.predicted_iou > first.predicted_iou
        assert session.box((1, 2, 5, 6)).area == 16
        assert session.mask.area == 16
    assert sent(service) == ["image", "restart", "+5,7", "-9,3", "box"]
    assert len(service.uploads) == 1


def test_undo_and_restart(service: FakeService, photo: samclip.Photo) -> None:
    with photo.clicks() as session:
        first = session.click(5, 7)
        assert service.uploads == [photo.key]  # which the service did not know
        session.click(9, 3)
        assert session.undo() is first
        third = session.click(4, 4, negative=True)
        assert third.predicted_iou == 0.75  # the second of the object's points
        session.restart()
        assert session.mask is None
        assert session.click(6, 6).predicted_iou == 0.5
        assert session.undo() is None
        assert session.undo() is None
    undone, again = ["restart", "+5,7", "+9,3"], ["restart", "+5,7", "-4,4"]
    assert sent(service)[2:] == [*undone, *again, "restart", "+6,6"]


def test_an_invalid_click_is_forgotten(service: FakeService, photo: samclip.Photo) -> None:
    with photo.clicks() as session:
        session.click(5, 7)
        with pytest.raises(samclip.InvalidArgument, match="outside"):
            session.click(99, 7)
        assert session.mask.area == 35
        assert session.click(9, 3).predicted_iou == 0.75
    assert sent(service)[-4:] == ["image", "restart", "+5,7", "+9,3"]


def test_a_session_that_the_service_ended_is_opened_again(
    service: FakeService, photo: samclip.Photo
) -> None:
    with photo.clicks() as session:
        session.click(5, 7)
        service.refusal = grpc.StatusCode.DEADLINE_EXCEEDED, "no message for 300 seconds", ()
        opening = session._session.open_stream
        session._session.open_stream = lambda kind: (
            setattr(service, "refusal", None),
            opening(kind),
        )[1]
        assert session.click(9, 3).predicted_iou == 0.75


class Interrupted:
    """A call whose caller presses Ctrl+C before the answer comes, and then goes on with it."""

    def __init__(self, call: Any) -> None:
        self.cancel = call.cancel
        self._call, self._interrupted = call, False

    def __next__(self) -> Any:
        if self._interrupted:
            return next(self._call)
        self._interrupted = True
        raise KeyboardInterrupt


def test_an_interrupted_click_does_not_answer_the_next_one(
    service: FakeService, photo: samclip.Photo
) -> None:
    with photo.clicks() as session:
        session.click(5, 7)
        session._stream._call = Interrupted(session._stream._call)
        with pytest.raises(KeyboardInterrupt):
            session.click(3, 3)
        assert session.click(9, 3).predicted_iou == 0.75


def test_a_service_that_stays_away_is_an_error(service: FakeService, photo: samclip.Photo) -> None:
    with photo.clicks() as session:
        session.click(5, 7)
        service.refusal = grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", ()
        with pytest.raises(samclip.Overloaded, match="busy") as caught:
            session.click(9, 3)
        assert len(caught.value.request_id) == 32
        service.refusal = None
        assert session.click(9, 3).predicted_iou == 0.75


def test_an_answer_has_a_time_limit(server: Server) -> None:
    service, address = server
    with samclip.Client(address, timeout=0.5) as client, client.image(png()).clicks() as session:
        service.release.clear()
        with pytest.raises(samclip.DeadlineExceeded, match=r"within 0\.5 s"):
            session.click(5, 7)


def test_the_async_twin(server: Server) -> None:
    service, address = server

    async def clicks() -> None:
        async with (
            samclip.AsyncClient(address, timeout=20) as client,
            client.image(png()).clicks() as session,
        ):
            first = await session.click(5, 7)
            np.testing.assert_array_equal(first.array, rectangle(0, 0, 5, 7))
            assert (await session.box((1, 2, 5, 6))).area == 16
            assert await session.undo() is first
            with pytest.raises(samclip.InvalidArgument, match="outside"):
                await session.click(99, 7)
            assert (await session.click(9, 3, negative=True)).predicted_iou == 0.75
            await session.restart()
            service.release.clear()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.click(2, 2), 0.2)
            service.release.set()
            assert (await session.click(5, 7)).area == 35
            await session.restart()
            service.release.clear()
            client._session._timeout = session._stream._timeout = 0.2  # also of the next stream
            with pytest.raises(samclip.DeadlineExceeded):
                await session.click(1, 1)

    asyncio.run(clicks())
