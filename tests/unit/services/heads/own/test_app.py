"""A head of one's own answers as a service, and its faults harm no caller and no other head."""

import asyncio
import io
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, field_validator
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as pb

from samclip_core import Head, SamClip
from samclip_core.answers.explain import Explain
from samclip_core.errors import (
    HeadError,
    InvalidLabels,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from samclip_core.geometry import Geometry
from samclip_core.io.checkpoint import read_sealed_config
from samclip_core.types import EverythingMask
from services.backbone.app import Backbone
from services.batching.priority import Priority
from services.heads.own import app
from services.local import Direct
from services.request.context import RequestContext
from services.request.wire import from_tensor
from services.settings import Settings, SettingsError
from tests import own_heads
from tests.in_process import ANYBODY, png

PICTURE = pb.Image(encoded=png())


@pytest.fixture
async def heads(settings: Settings, tiny_model: SamClip, cold: None) -> AsyncIterator[Any]:
    """Return a function that opens a head of tests/own_heads.py by its class."""
    backbone, opened = Backbone(settings, tiny_model), list[app.OwnHead]()

    def open_(kind: type[Head]) -> app.OwnHead:
        service = app.of(kind.__name__.lower(), f"{kind.__module__}:{kind.__qualname__}")
        opened.append(service(settings, peer=Direct(backbone), sam_head=tiny_model.sam_head))
        return opened[-1]

    yield open_
    for head in opened:
        await head.close()
    await backbone.embedder.close()


async def ask(head: app.OwnHead, context: RequestContext = ANYBODY, **values: Any) -> Any:
    request = pb.AskRequest(image=PICTURE)
    request.parameters.update(values)
    return await head.answer("Ask", request, context)


async def test_parameters_texts_and_the_answer(heads: Any, tiny_model: SamClip) -> None:
    head = heads(own_heads.Closest)
    reply = await ask(head, words=["a dog", "a cat"], at_least=0.5)
    (first, *_) = tiny_model.classify(png(), ["a dog", "a cat"])
    assert reply.result["word"] == first.label
    assert reply.result["cosine"] == pytest.approx(first.similarity, abs=1e-2)
    assert reply.result["sure"] is True
    assert (reply.image.width, reply.model.digest) == (40, tiny_model.digest)


async def test_masks_arrays_and_pictures_are_beside_the_result(heads: Any) -> None:
    reply = await ask(heads(own_heads.Parts))
    assert dict(reply.result["parts"][0]) == {"mask": {"$mask": 0}, "name": "upper"}
    mask = reply.masks[0]
    assert decode_rle(mask.rle.counts, 30, 40)[:15].all()
    assert mask.area == 15 * 40
    assert reply.result["map"]["$tensor"] == 0
    assert reply.tensors[0].dtype in ("float16", "float32")
    assert reply.pictures[0].startswith(b"\x89PNG")
    assert reply.result["none"] is None


async def test_our_heat_map_is_a_head_of_this_kind(heads: Any, tiny_model: SamClip) -> None:
    reply = await ask(heads(Explain), label="a dog", others=["a wall"])
    expected = tiny_model.explain(png(), "a dog", ["a wall"])
    map_HW = from_tensor(reply.tensors[0])
    assert map_HW.shape == expected.levels_HW.shape
    assert np.abs(map_HW.astype(int) - expected.levels_HW).mean() < 3  # float16 on the way
    assert reply.result["low"] == pytest.approx(expected.low, abs=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"at_least": 2}, "at_least: Input should be less than or equal to 1"),
        ({"at_least": "much"}, "at_least: Input should be a valid number"),
        ({"least": 1}, "unknown parameter 'least': the head has at_least, words"),
        ({"words": 3}, "words: Input should be a valid list"),
        ({"words": "[1"}, "is not JSON"),
        ({"at_least": float("inf")}, "not finite"),
    ],
)
async def test_parameters_that_do_not_fit_are_the_callers_error(heads, values, message) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await ask(heads(own_heads.Closest), **values)


@dataclass
class Inner:
    limit: float = float("inf")


class Numbers(Head):
    class Parameters(BaseModel):
        weight: float = float("inf")
        count: int = 1
        sizes: list[float] = []
        latest: deque[float] = deque()
        inner: Inner = Inner()

    def answer(self, features: Any, parameters: Any) -> dict[str, Any]:
        return {"count": parameters.count}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": "nan"}, "weight is not finite"),
        ({"weight": "1e999"}, "weight is not finite"),
        ({"count": "9" * 4000}, "count: the whole number is beyond 64 bits"),
        ({"sizes": '["Infinity", 1]'}, "sizes.0 is not finite"),
        ({"latest": ["nan"]}, "latest.0 is not finite"),
        ({"inner": {"limit": "-inf"}}, "inner.limit is not finite"),
    ],
)
async def test_texts_become_no_numbers_that_a_request_may_not_have(heads, values, message) -> None:
    head = heads(Numbers)
    with pytest.raises(InvalidRequest, match=message):
        await ask(head, **values)
    assert (await ask(head, count="7", inner={})).result["count"] == 7


async def test_texts_stand_for_what_a_form_cannot_say(heads: Any) -> None:
    head = heads(own_heads.Closest)
    for words in (["a"], "a", '["a"]'):
        assert (await ask(head, words=words, at_least="0.25")).result["word"] == "a"


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("invalid", InvalidRequest, "no face in the picture"),
        ("crash", RuntimeError, "secret"),
        ("list", TypeError, "expected a dictionary"),
        ("nan", ValueError, "number nan"),
        ("long", ValueError, "more than 100,000 values"),
        ("dollar", TypeError, r"does not begin with \$"),
        ("object", TypeError, "a object, which JSON cannot hold"),
    ],
)
async def test_faults_of_a_head(heads: Any, how: str, error: type[Exception], message: str) -> None:
    head = heads(own_heads.Faulty)
    with pytest.raises(error, match=message):
        await ask(head, how=how)
    assert (await ask(head, how="none")).result["how"] == "none"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((3, 4), bool), "a mask has the shape"),
        (np.array([1.0, np.nan]), "not finite"),
        (np.array(["a"]), "an array has the dtype"),
        (np.ma.array([1.0], mask=[True]), "an array is masked"),
        (np.broadcast_to(np.float64(1), (10**7, 10**7)), "would have 400,000,000,00"),
        (EverythingMask(Geometry(9, 9, 64), np.ones((2, 2)), 1, 1), r"shape \(9, 9\)"),
        ([Image.new("1", (8192, 8192))] * 2, "the pictures have 134,217,728 pixels"),
        ({"k" * 2**20: 0}, "would have"),
        (2**60, "up to 2"),
        ({1: 2}, "cannot be a key"),
        ("\ud800", "surrogates"),
    ],
)
async def test_what_no_answer_can_contain(heads, monkeypatch, value: Any, message: str) -> None:
    monkeypatch.setattr(own_heads.Faulty, "answer", lambda *_: {"value": [value] * 100})
    with pytest.raises((TypeError, ValueError, InvalidRequest), match=message):
        await ask(heads(own_heads.Faulty), RequestContext())  # whose bytes count for it alone


async def test_a_nested_answer_ends(heads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nested: list[Any] = []
    nested.append(nested)
    monkeypatch.setattr(own_heads.Faulty, "answer", lambda *_: {"value": nested})
    with pytest.raises(ValueError, match="lists in more than"):
        await ask(heads(own_heads.Faulty))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16", "CMYK", "YCbCr", "HSV"])
async def test_pictures_of_usual_modes_become_png(heads, monkeypatch, mode: str) -> None:
    monkeypatch.setattr(own_heads.Faulty, "answer", lambda *_: {"value": Image.new(mode, (2, 2))})
    reply = await ask(heads(own_heads.Faulty))
    assert reply.result["value"]["$picture"] == 0
    assert Image.open(io.BytesIO(reply.pictures[0])).size == (2, 2)


async def test_only_a_step_beyond_the_operators_limit_makes_the_replica_unhealthy(
    heads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, entered = threading.Event(), threading.Event()

    def hang(*_: Any) -> dict[str, Any]:
        entered.set()
        free.wait()
        return {}

    monkeypatch.setattr(own_heads.Faulty, "answer", hang)
    head = heads(own_heads.Faulty)
    await head.check_health()
    begun = monotonic()
    asked = asyncio.create_task(ask(head, RequestContext(priority=Priority(begun + 40))))
    try:
        assert await asyncio.to_thread(entered.wait, 40)
        most_s = head.settings.request_timeout_s
        monkeypatch.setattr(app, "monotonic", lambda: begun + most_s - 1)
        await head.check_health()  # long after the time of its caller
        monkeypatch.setattr(app, "monotonic", lambda: begun + most_s + 20)
        with pytest.raises(Unavailable, match="does not end"):
            await head.check_health()
    finally:
        free.set()
    await asyncio.wait([asked])


async def test_long_work_stops_between_steps_when_nobody_waits(heads, monkeypatch) -> None:
    steps = list[int]()

    def answer(*_: Any) -> Any:
        while True:
            steps.append(1)
            yield None

    monkeypatch.setattr(own_heads.Faulty, "answer", answer)
    head = heads(own_heads.Faulty)
    task = asyncio.create_task(ask(head))
    while not steps:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    done = len(steps)
    await asyncio.sleep(0.05)
    assert len(steps) == done


async def test_what_nobody_waits_for_cleans_up_in_the_thread_of_the_head(
    heads, monkeypatch
) -> None:
    threads, entered = list[str](), threading.Event()

    def answer(*_: Any) -> Any:
        try:
            while True:
                entered.set()
                yield None
        finally:
            threads.append(threading.current_thread().name)

    monkeypatch.setattr(own_heads.Faulty, "answer", answer)
    head = heads(own_heads.Faulty)
    asked = asyncio.create_task(ask(head))
    assert await asyncio.to_thread(entered.wait, 60)
    asked.cancel()
    await asyncio.wait([asked])
    monkeypatch.undo()
    await ask(head)
    assert threads == ["head_0"]


@pytest.mark.parametrize("error", [SystemExit(), StopIteration()])
@pytest.mark.parametrize("where", ["answer", "texts", "load"])
async def test_no_error_of_a_head_ends_its_process(heads, monkeypatch, where, error) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(own_heads.Faulty, where, fail, raising=False)
    head = heads(own_heads.Faulty)
    with pytest.raises(RuntimeError, match="raised"):
        await asyncio.create_task(ask(head))
    monkeypatch.undo()
    assert (await ask(head)).result["how"] == ""


async def test_texts_are_bounded_and_made_in_the_thread_of_the_head(heads, monkeypatch) -> None:
    head = heads(own_heads.Closest)
    with pytest.raises(InvalidLabels, match="at most"):
        await ask(head, words=["a"] * 2000)
    with pytest.raises(InvalidLabels, match="label 1 is empty"):
        await ask(head, words=["a", " "])
    models = list[Any]()
    monkeypatch.setattr(
        own_heads.Faulty, "load", lambda _, model: models.append(model), raising=False
    )

    def texts(*_: Any) -> list[str]:
        models[0].embed_text(["red"])  # which on the event loop would wait for itself
        return ["red"]

    monkeypatch.setattr(own_heads.Faulty, "texts", texts, raising=False)
    assert (await ask(heads(own_heads.Faulty))).result["how"] == ""


async def test_embed_text_waits_no_longer_than_the_caller(heads, monkeypatch) -> None:
    models, waited = list[Any](), list[float]()
    monkeypatch.setattr(
        own_heads.Faulty, "load", lambda _, model: models.append(model), raising=False
    )
    head = heads(own_heads.Faulty)

    async def embed_text(context: RequestContext, texts: Any) -> Any:
        waited.append(context.priority.deadline)
        raise Unavailable("no backbone")

    monkeypatch.setattr(head.backbone, "embed_text", embed_text)
    monkeypatch.setattr(own_heads.Faulty, "answer", lambda *_: models[0].embed_text(["red"]))
    deadline = monotonic() + 10
    with pytest.raises(Unavailable):
        await ask(head, RequestContext(priority=Priority(deadline)))
    assert waited == [deadline]


async def test_one_text_is_no_list_of_texts(heads, monkeypatch) -> None:
    monkeypatch.setattr(own_heads.Closest, "texts", lambda *_: "a cat")
    with pytest.raises(TypeError, match="returned one text: expected a list"):
        await ask(heads(own_heads.Closest))


async def test_a_head_is_loaded_once_and_its_error_reaches_the_start(heads, monkeypatch) -> None:
    loads = list[int]()
    monkeypatch.setattr(own_heads.Closest, "load", lambda *_: loads.append(1), raising=False)
    head = heads(own_heads.Closest)
    await asyncio.gather(*(ask(head) for _ in range(4)))
    assert len(loads) == 1

    def fail(*_: Any) -> None:
        raise OSError("no weights")

    monkeypatch.setattr(own_heads.Faulty, "load", fail, raising=False)
    with pytest.raises(OSError, match="no weights"):
        await heads(own_heads.Faulty).start()


async def test_its_entry_in_the_list(heads: Any) -> None:
    reply = await heads(own_heads.Closest).answer("ListHeads", pb.ListHeadsRequest(), ANYBODY)
    (listed,) = reply.heads
    assert listed.name == "closest"
    assert listed.description == "Which of two words the picture is closer to."
    assert [*listed.outputs] == [pb.CLIP_POOLED]
    assert listed.parameters["properties"]["at_least"]["maximum"] == 1


async def test_another_heads_request_is_refused(heads: Any) -> None:
    request = pb.AskRequest(image=PICTURE, head="other")
    with pytest.raises(NotFound, match="no head 'other' answers here, only 'closest'"):
        await heads(own_heads.Closest).answer("Ask", request, ANYBODY)


def test_settings_name_each_head_once(settings: Settings) -> None:
    found = Settings(heads="a.py:RipeFruit,shop:SKU").own_heads
    assert found == {"ripe-fruit": f"{Path.cwd()}/a.py:RipeFruit", "sku": "shop:SKU"}
    assert Settings(heads="probes/parts").own_heads == {"parts": f"{Path.cwd()}/probes/parts"}
    for wrong, message in (("a.py:Same,b.py:Same", "two heads"), ("a b", "no usable name")):
        with pytest.raises(SettingsError, match=message):
            Settings.load(heads=wrong)
    with pytest.raises(SettingsError, match="an application has one head"):
        app.build(settings)


def test_a_link_to_a_folder_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "Parts-3").mkdir()
    for name in ("current", "next"):
        (tmp_path / name).symlink_to(tmp_path / "Parts-3")
    specs = f"{tmp_path}/current", f"{tmp_path}/next"
    assert Settings(heads=",".join(specs)).own_heads == {
        name: f"{tmp_path}/{name}" for name in ("current", "next")
    }


def test_a_probe_answers_with_the_model_that_it_was_fitted_to(
    settings: Settings, tiny_checkpoint: Path
) -> None:
    models = "edge", f"tiny={tiny_checkpoint}", "today=tiny"
    several = Settings(models=models, front_door_secret=settings.front_door_secret)
    digest = read_sealed_config(tiny_checkpoint)[1]
    assert app._by_default(several, digest).default == "tiny"
    assert app._by_default(several, "f" * 64).default == "edge"
    assert app._by_default(settings, digest) == settings


def test_a_class_that_is_no_head_is_refused(settings: Settings) -> None:
    with pytest.raises(HeadError, match="no class Missing"):
        app.of("missing", "tests.own_heads:Missing")(settings)


THREADS = set[str]()


class Checked(Head):
    """Notes which threads call its code."""

    class Parameters(BaseModel):
        word: str

        @field_validator("word")
        @classmethod
        def note(cls, word: str) -> str:
            THREADS.add(threading.current_thread().name)
            return word

    def answer(self, features: Any, parameters: Any) -> dict[str, Any]:
        THREADS.add(threading.current_thread().name)
        return {}


async def test_validators_and_answers_run_in_one_thread(heads: Any) -> None:
    await ask(heads(Checked), word="red")
    assert {*THREADS} == {"head_0"}
