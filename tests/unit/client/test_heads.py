"""Heads of one's own by the client: their answers, with masks, arrays and pictures in place."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samclip
from samclip.heads import with_parts

from tests.fake_server import FakeService, bands
from tests.unit.client.conftest import HEIGHT, WIDTH, Server, png


def test_an_answer_has_its_parts_in_place_and_goes_to_its_head_at_once(
    service: FakeService, client: samclip.Client
) -> None:
    photo = client.image(png())
    found = photo.ask("echo", at_least=1, words=["a", "b"], encoding="png", deep={"x": [None]})
    request, headers = service.calls[-1]
    assert headers["x-samclip-head"] == request.head == "echo"
    assert [*found] == sorted(found)
    assert (found["share"], found["at_least"], found["words"]) == (0.5, 1, ["a", "b"])
    assert isinstance(found["at_least"], int)
    assert found["deep"] == {"x": [None]}
    assert [part["name"] for part in found["parts"]] == ["b", "a"]
    left = found["parts"][1]["mask"]
    assert (left.array == (bands(HEIGHT, WIDTH, 2) == 0)).all()
    assert left.data.kind == "png"
    assert left.cutout().size == (WIDTH // 2, HEIGHT)
    assert (found["map"].dtype, found["map"].shape) == (np.float32, (2, 3))
    assert (found["drawn"].size, found["drawn"].getpixel((0, 0))) == ((4, 3), 0)
    assert photo.info is not None
    drawn = np.asarray(photo.show())
    assert (drawn != np.asarray(photo.show([]))).any()  # the masks of the latest answer


def test_both_clients_ask_heads_about_many_photographs(server: Server, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number) if number else b"broken")

    async def waiting() -> list[Any]:
        async with samclip.AsyncClient(server[1], timeout=20) as client:
            assert (await client.heads())[0].name == "echo"
            return [each async for each in client.images(tmp_path).ask("echo", at_least=0.5)]

    with samclip.Client(server[1], timeout=20) as client:
        photos = client.images(tmp_path)
        answers = [*photos.ask("echo", at_least=0.5)]
        with pytest.raises(TypeError, match="parameters at_least belong to a head"):
            next(photos.ask(lambda photo: None, at_least=0.5))
    for found in (answers, asyncio.run(waiting())):
        assert [answer["at_least"] for _, answer in found] == [0.5, 0.5]
    assert [*photos.errors] == [str(tmp_path / "0.png")]


def test_heads_are_listed_with_their_schema(client: samclip.Client) -> None:
    echo, torn = client.heads()
    assert echo.parameters == {"properties": {"at_least": {"type": "number", "maximum": 1}}}
    assert (echo.outputs, echo.classes, echo.reason) == (("clip_pooled",), ("a",), "")
    assert torn.reason == "weights.bin is cut off"


@pytest.mark.parametrize("value", [np.float32(1), {1: 2}, b"x", object()])
def test_a_parameter_that_no_message_holds_is_named(
    value: Any, service: FakeService, client: samclip.Client
) -> None:
    with pytest.raises(
        TypeError, match=rf"at_least is .*{type(value).__name__}.*: expected a text"
    ):
        client.image(png()).ask("echo", at_least=value)
    assert not service.calls


@pytest.mark.parametrize("name", ["other", "größe", "a b\n", "x" * 5_000])
def test_a_name_that_no_head_has_is_refused_by_the_service(
    name: str, service: FakeService, client: samclip.Client
) -> None:
    with pytest.raises(samclip.NotFound):
        client.image(png()).ask(name)
    assert ("x-samclip-head" in service.calls[-1][1]) is (name == "other")


def test_only_a_lone_reference_stands_for_a_part() -> None:
    values = {"$mask": 0, "b": {"$mask": 1}}
    assert with_parts(values, {"$mask": "ab"}) == {"$mask": 0, "b": "b"}
