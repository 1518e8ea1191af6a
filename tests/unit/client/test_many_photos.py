"""Many photographs: in order, several at once, and a broken one stops nothing."""

import asyncio
import inspect
import logging
import threading
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import samclip
from samclip.patience import AWAY_S, each

from tests.fake_server import FakeService
from tests.unit.client.conftest import Captured, Server, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with eleven photographs, one of them below, and two files that are none."""
    (tmp_path / "below").mkdir()
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "below/10.JPG").write_bytes(png(10))
    (tmp_path / "3-broken.png").write_bytes(b"broken")
    (tmp_path / "empty.webp").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no photograph")
    return tmp_path


@pytest.fixture(params=["blocking", "async"])
def ask(request: pytest.FixtureRequest, server: Server) -> Any:
    """Return a function that asks about images, with either client: photographs and answers."""

    def blocking(images: Any, question: Any, **options: Any) -> Any:
        with samclip.Client(server[1], timeout=20) as client:
            photos = client.images(images, **options)
            return photos, [*photos.ask(question)]

    async def waiting(images: Any, question: Any, **options: Any) -> Any:
        async def asked(photo: samclip.AsyncPhoto) -> Any:
            answer = question(photo)
            return await answer if inspect.isawaitable(answer) else answer

        async with samclip.AsyncClient(server[1], timeout=20) as client:
            photos = client.images(images, **options)
            return photos, [answered async for answered in photos.ask(asked)]

    if request.param == "blocking":
        return blocking
    return lambda *given, **options: asyncio.run(waiting(*given, **options))


def test_each_photograph_comes_with_its_answer_in_order(
    ask: Any, client: samclip.Client, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "samclip"):
        photos, answers = ask(folder, lambda photo: photo.classify(["cat", "horse"]), at_once=3)
    assert len(photos) == 13
    names = [str(Path(photo.name).relative_to(folder)) for photo, _ in answers]
    assert names == sorted(names) == sorted([*(f"{n}.png" for n in range(10)), "below/10.JPG"])
    assert {scores[0].label for _, scores in answers} == {"horse"}
    assert [photo.key for photo, _ in answers[:2]] == [
        client.image(folder / f"{number}.png").key for number in range(2)
    ]
    broken, empty = str(folder / "3-broken.png"), str(folder / "empty.webp")
    assert photos.errors.keys() == {broken, empty}
    assert photos.errors[broken] == "not an image"
    assert photos.errors[empty].startswith("the file is empty")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [broken, empty]


def test_a_loop_over_a_folder_passes_over_what_is_not_read(
    client: samclip.Client, tmp_path: Path
) -> None:
    (tmp_path / "phone.heic").write_bytes(b"a photograph of a telephone")
    other = tmp_path / "other"
    other.mkdir()
    (other / "scan.tiff").write_bytes(b"a scan")
    (other / "0.png").write_bytes(png(0))
    unread = {str(other / "scan.tiff"), str(tmp_path / "phone.heic")}
    for given in (tmp_path, [tmp_path], [other, str(tmp_path)]):
        photos = client.images(given)
        for photo in photos:
            assert photo.classify(["cat"])
        assert photos.errors.keys() == unread
        assert {*photos.errors.values()} == {"not read: convert it to .jpeg, .jpg, .png, .webp"}
    (other / "0.png").unlink()
    assert len(list(client.images([png(1), other]))) == 1  # one such file alone stops nothing


async def test_the_requests_of_a_photograph_are_those_of_photographs(
    server: Server, client: samclip.Client, folder: Path
) -> None:
    photos = client.images(folder)
    assert repr(photos) == "Photos(13 photographs)"
    vectors = list(photos.embed())
    assert len(vectors) == 11
    for photo, vector_D in vectors:
        np.testing.assert_array_equal(vector_D, photo.embed())
    assert {scores[0].label for _, scores in photos.classify(["cat", "horse"])} == {"horse"}
    for name, arguments in (("segment", [(1, 2)]), ("everything", []), ("semantic", ["cat"])):
        ((photo, answer),) = getattr(client.images(folder / "0.png"), name)(*arguments)
        assert photo.show(answer)
    async with samclip.AsyncClient(server[1]) as twin:
        theirs = [vector_D async for _, vector_D in twin.images(folder).embed()]
        np.testing.assert_array_equal(theirs, [vector_D for _, vector_D in vectors])


async def test_a_folder_is_indexed_under_the_names_in_it(
    server: Server, client: samclip.Client, folder: Path
) -> None:
    (folder / "phone.heic").write_bytes(b"a photograph of a telephone")
    names = {*(f"{number}.png" for number in range(10)), "below/10.JPG"}
    for given in (folder, str(folder), [folder], client.images(folder)):
        done = client.index("greys", given, metadata={"below/10.JPG": {"owner": "ann"}})
        assert done.indexed == 11
        assert done.errors.keys() == {"3-broken.png", "empty.webp", "phone.heic"}
        assert done.errors["phone.heic"].startswith("not read: convert it")
        assert {item.id for item in client.list_items("greys")} == names
        client.delete("greys", all=True)
    assert client.index("greys", [folder / "0.png", folder / "below"]).indexed == 2
    async with samclip.AsyncClient(server[1]) as twin:
        assert (await twin.index("greys", folder)).indexed == 11


def test_what_cannot_be_indexed_is_named_before_anything_is_sent(
    server: Server, client: samclip.Client, folder: Path
) -> None:
    (folder / "below/0.png").write_bytes(png(77))
    for given, message in (
        ([folder / "0.png", folder / "below/0.png"], "would both have the id '0.png'"),
        (png(1), r"an image in memory needs an id: pass \{id: image\}"),
    ):
        with pytest.raises(ValueError, match=message):
            client.index("greys", given)
    with pytest.raises(ValueError, match=r"'0\.jpg', which no image has: expected '0\.png'"):
        client.index("greys", folder / "0.png", metadata={"0.jpg": {"owner": "ann"}})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        client.index("greys", folder / "nowhere")
    assert not server[0].calls


async def test_photographs_alone(server: Server, client: samclip.Client, folder: Path) -> None:
    photos = client.images(str(folder))
    names = [photo.name for photo in photos]
    assert len(names) == 12  # the service was not asked about the broken one
    assert list(photos.errors) == [str(folder / "empty.webp")]
    assert [photo.name for photo in photos] == names
    assert repr(photos) == "Photos(13 photographs, 1 without an answer)"
    async with samclip.AsyncClient(server[1]) as twin:
        assert [photo.name async for photo in twin.images(folder)] == names


def test_any_sources(client: samclip.Client, folder: Path) -> None:
    missing = folder / "missing.png"
    given = [folder / "0.png", str(folder / "below"), png(1), np.zeros((4, 4), np.uint8), missing]
    photos = client.images(given)
    first, second = str(folder / "0.png"), str(folder / "below/10.JPG")
    assert [photo.name for photo in photos] == [first, second, "photograph 3", "photograph 4"]
    assert photos.errors == {str(missing): "No such file or directory"}
    matching = [Path(photo.name).name for photo in client.images(str(folder / "[12].png"))]
    assert matching == ["1.png", "2.png"]
    assert [photo.key for photo in client.images(png(1))] == [client.image(png(1)).key]
    made = client.image(folder / "0.png")
    assert list(client.images([made])) == [made]
    assert made.name == str(folder / "0.png")


def test_an_address_is_downloaded_when_its_turn_comes(
    client: samclip.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, away = "https://example.org/a.png", "https://example.org/b.png"

    def download(url: str) -> bytes:
        if url == away:
            raise OSError(f"{url}: the server answered 404 Not Found")
        return png(5)

    photos = client.images([here, away])
    monkeypatch.setattr("samclip.images.download", download)
    assert [(photo.name, photo.key) for photo in photos] == [(here, client.image(png(5)).key)]
    assert photos.errors == {away: "the server answered 404 Not Found"}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"images": "missing"}, FileNotFoundError, "no such file or folder"),
        ({"images": "nothing"}, ValueError, "no image files found"),
        ({"images": "*.jpg"}, ValueError, "no file matches"),
        ({"images": 3}, TypeError, "expected a folder, a path, .* found int"),
        ({"images": b"a file", "at_once": 0}, ValueError, "expected at least 1"),
    ],
)
def test_what_cannot_be_asked_about_is_an_error_at_once(
    client: samclip.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        client.images(**given)


def test_several_are_asked_about_at_once_and_no_more(client: samclip.Client) -> None:
    together, most, running = threading.Barrier(3, timeout=20), 0, 0
    lock = threading.Lock()

    def question(_: samclip.Photo) -> None:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        together.wait()  # passes only if three are asked about at once
        with lock:
            running -= 1

    assert len(list(client.images([png(n) for n in range(9)], at_once=3).ask(question))) == 9
    assert most == 3


def test_photographs_are_read_when_their_turn_comes(client: samclip.Client) -> None:
    read = []
    photos = client.images([png(number) for number in range(50)], at_once=2)
    make = photos._make
    photos._make = lambda source: read.append(source) or make(source)
    answers = photos.ask(lambda photo: None)
    next(answers)
    answers.close()
    assert len(read) <= 5


BUSY = samclip.Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", "1")
LARGE = samclip.Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", "1")
DAMAGED = samclip.Unavailable(grpc.StatusCode.UNAVAILABLE, "the model is damaged", "1")
BUSY.retry_after_s = DAMAGED.retry_after_s = 0.0


@pytest.mark.parametrize(("error", "times"), [(BUSY, 1100), (LARGE, 1), (DAMAGED, 5)])
def test_a_busy_service_is_asked_until_it_answers_and_one_that_is_away_for_a_while(
    ask: Any, monkeypatch: pytest.MonkeyPatch, error: samclip.ServiceError, times: int
) -> None:
    monkeypatch.setattr("samclip.patience.LONGEST_S", 0)
    monkeypatch.setattr("samclip.patience.monotonic", partial(next, count(0, AWAY_S / 4)))
    asked: list[object] = []

    def question(photo: object) -> str:
        asked.append(photo)
        if error is DAMAGED or len(asked) <= times:
            raise error
        return "an answer"

    if error is DAMAGED:
        with pytest.raises(samclip.Unavailable, match="the model is damaged"):
            ask(png(1), question)
    else:
        photos, answers = ask(png(1), question)
        assert [answer for _, answer in answers] == ["an answer"] * (error is BUSY)
        assert photos.errors == ({} if error is BUSY else {"photograph 1": str(error)})
    assert len(asked) == times + (error is BUSY)


def test_refusals_and_mistakes_in_the_question_are_raised(
    ask: Any, service: FakeService, folder: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        ask(folder, lambda photo: 1 / 0)
    service.refusal = (grpc.StatusCode.UNAUTHENTICATED, "no key", ())
    with pytest.raises(samclip.Unauthenticated):
        ask(folder, lambda photo: photo.embed())


def test_progress_is_shown_if_it_is_asked_for(
    client: samclip.Client, folder: Path, capsys: Captured
) -> None:
    for progress in (False, True):
        list(client.images(folder, progress=progress))
        shown = capsys.readouterr()
        assert ("13/13" in shown.err) is progress
        assert not shown.out


def test_each_leaves_quickly() -> None:
    started = []
    answers = each(range(100), started.append, 2)
    next(answers)
    answers.close()
    assert len(started) <= 4


def test_nobody_is_asked_again_once_nobody_waits() -> None:
    asked = threading.Event()

    def refuse(_: int) -> None:
        asked.set()
        raise BUSY

    answers = each([1], refuse, 1)
    _, future = next(answers)
    assert asked.wait(60)
    answers.close()
    with pytest.raises(samclip.Overloaded):
        future.result(60)


async def test_the_async_twin_asks_several_at_once_and_no_more() -> None:
    together, most, running = asyncio.Barrier(3), 0, 0

    async def question(_: samclip.AsyncPhoto) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await together.wait()
        running -= 1

    async with samclip.AsyncClient("127.0.0.1:1") as client:
        async for _ in client.images([png(n) for n in range(9)], at_once=3).ask(question):
            pass
    assert most == 3


async def test_the_async_twin_cancels_what_nobody_waits_for() -> None:
    waiting = cancelled = 0

    async def question(photo: samclip.AsyncPhoto) -> None:
        nonlocal waiting, cancelled
        if photo.name != "photograph 1":
            waiting += 1
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                cancelled += 1
                raise

    async with samclip.AsyncClient("127.0.0.1:1") as client:
        answers = client.images([png(n) for n in range(9)], at_once=3).ask(question)
        await anext(answers)
        while waiting < 3:
            await asyncio.sleep(0.01)
        await answers.aclose()
    assert cancelled == 3
