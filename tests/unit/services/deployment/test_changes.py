"""Changes of the settings, and callers who go, while models of one process load and unload."""

import asyncio
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import AsyncMock

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import AnotherCheckpoint, CheckpointError, SamClipError, Unavailable
from samclip_core.io import checkpoint
from services.batching.priority import Priority
from services.deployment import ingress, model, models
from services.deployment.ingress import Ingress
from services.deployment.model import info
from services.observability import metrics
from services.request.context import RequestContext
from services.request.rpc import Service
from services.settings import Settings
from tests.shown import shown
from tests.tiny import make_tiny_checkpoint


class Light(Service):
    """A service without weights. A load waits for the gate of its files in ``shut``."""

    name, application = "ClassificationService", "classification"
    shut: ClassVar[dict[str, threading.Event]] = {}
    alive: ClassVar[list[str]] = []

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.alive.append(settings.checkpoint)
        assert self.shut.get(settings.checkpoint, OPEN).wait(60)
        self.model = info(settings)

    @classmethod
    def expected_bytes(cls, settings: Settings) -> int:
        return 100

    async def close(self) -> None:
        await asyncio.sleep(0.05)
        self.alive.remove(self.settings.checkpoint)

    async def Classify(
        self, request: pb.ClassifyRequest, context: RequestContext
    ) -> pb.ClassifyResponse:
        return pb.ClassifyResponse(model=self.model)


OPEN = threading.Event()
OPEN.set()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("files")
    return {name: str(make_tiny_checkpoint(root / name, seed=n)) for n, name in enumerate("abc")}


@pytest.fixture
def shut(files, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, threading.Event]]:
    """Return gates before the loads of files, where a test puts some."""
    monkeypatch.setattr(Light, "shut", {})
    monkeypatch.setattr(Light, "alive", [])
    yield Light.shut
    for gate in Light.shut.values():
        gate.set()


@pytest.fixture
async def member(request, settings, files, shut, monkeypatch) -> AsyncIterator[Ingress]:
    """Serve the files ``a`` as ``one``, and ``b`` as ``two``."""
    monkeypatch.setattr(models, "AGAIN_S", 0.01)
    monkeypatch.setattr(models, "ROOM_S", 0.01)
    monkeypatch.setattr(metrics, "used_bytes", lambda device: 0)
    changes = {"models": named(files, one="a", two="b"), "checkpoint": "edge"}
    changes |= getattr(request, "param", {})
    made = ingress.Ingress(Light, Settings(**{**settings.model_dump(), **changes}))
    await made.reconfigure({})
    yield made
    for task in (made._swap, made.models._keeper):
        if task is not None:
            task.cancel()


def named(files: dict[str, str], **models: str) -> tuple[str, ...]:
    return tuple(f"{name}={files[each]}" for name, each in models.items())


async def ask(member: Ingress, name: str) -> str:
    """Return the digest of what answers."""
    context = RequestContext(priority=Priority(time.monotonic() + 30))
    request = pb.ClassifyRequest(model=name)
    return (await member.answer("Classify", request, context)).model.digest


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def settled(member: Ingress) -> None:
    await until(lambda: member._state != "under way")
    assert member._state == "done"


def digest(files: dict[str, str], name: str) -> str:
    return checkpoint.digest(Path(files[name]))


async def test_a_name_that_gets_other_files_while_it_loads_has_these(member, files, shut) -> None:
    shut[files["b"]] = threading.Event()
    asking = asyncio.create_task(ask(member, "two"))
    await until(lambda: member.models.named["two"].loading)
    await member.reconfigure({"models": named(files, one="a", two="c")})
    await asyncio.sleep(0.1)
    shut[files["b"]].set()
    await settled(member)
    assert member.models.named["two"].service
    assert await asking in (digest(files, "b"), digest(files, "c"))
    assert await ask(member, "two") == digest(files, "c")


async def test_a_setting_that_changes_during_a_load_is_the_models(member, files, shut) -> None:
    shut[files["b"]] = threading.Event()
    asking = asyncio.create_task(ask(member, "two"))
    await until(lambda: member.models.named["two"].loading)
    await member.reconfigure({"log_level": "ERROR"})
    await settled(member)
    shut[files["b"]].set()
    await asking
    assert member.models.named["two"].service.settings.log_level == "ERROR"


@pytest.mark.parametrize("member", [{"max_models_bytes": 100}], indirect=True)
async def test_a_larger_model_may_come_with_a_larger_bound(member, files, monkeypatch) -> None:
    used = iter([0, 300])
    monkeypatch.setattr(metrics, "used_bytes", lambda device: next(used))
    await member.reconfigure({"models": named(files, one="c"), "max_models_bytes": 400})
    await settled(member)
    assert await ask(member, "one") == digest(files, "c")


@pytest.mark.parametrize("fault", ["blocks", "is damaged"])
async def test_a_load_of_changed_files_is_one_whose_fault_is_known_when_callers_have_gone(
    member, files, shut, tmp_path, monkeypatch, fault
) -> None:
    place = tmp_path / "own"
    shutil.copytree(files["a"], place)
    await member.reconfigure({"models": (f"one={place}",)})
    await settled(member)
    for file in Path(files["c"]).iterdir():
        shutil.copy(file, place)
    shut[str(place)] = threading.Event()
    monkeypatch.setattr(models, "LOAD_S", 0.5 if fault == "blocks" else 60)
    count = partial(shown, metrics.MODEL_LOADS.labels("one", "failed"))
    loads, failed, wanted = Light.alive.count(str(place)), count(), digest(files, "c")

    async def ask_for_new() -> None:
        context = RequestContext(checkpoint=wanted)
        await member.answer("Classify", pb.ClassifyRequest(model="one"), context)

    asking = [asyncio.create_task(ask_for_new()) for _ in range(3)]
    await until(lambda: Light.alive.count(str(place)) > loads)
    for each in asking:
        each.cancel()
    if fault == "is damaged":
        monkeypatch.setattr(Light, "start", AsyncMock(side_effect=CheckpointError("damaged")))
        shut[str(place)].set()
    await until(lambda: count() > failed)
    with pytest.raises(AnotherCheckpoint):
        await ask_for_new()
    assert count() == failed + 1
    assert Light.alive.count(str(place)) <= loads + 1  # no thread more
    shut[str(place)].set()


async def test_files_that_are_put_in_place_stay_until_they_are(member, files, monkeypatch) -> None:
    monkeypatch.setattr(models, "AGAIN_S", 0)  # the keeper looks between any two steps
    monkeypatch.setattr(models, "DRAIN_S", -1)
    await member.reconfigure({"models": named(files, one="c", two="b")})
    await settled(member)
    assert await ask(member, "one") == digest(files, "c")


async def test_what_is_unloaded_during_a_change_answers_again(member, files, shut) -> None:
    await ask(member, "two")
    shut[files["c"]] = threading.Event()
    await member.reconfigure({"models": named(files, one="a", two="c")})
    await until(lambda: files["c"] in Light.alive)
    one = member.models.named["one"]
    await member.models._unload([one])
    shut[files["c"]].set()
    await settled(member)
    assert await ask(member, "one") == digest(files, "a")
    assert await ask(member, "two") == digest(files, "c")


async def test_a_load_for_a_change_that_is_replaced_is_closed(member, files, shut) -> None:
    shut[files["c"]] = threading.Event()
    await member.reconfigure({"models": named(files, one="c", two="b")})
    await until(lambda: files["c"] in Light.alive)
    await member.reconfigure({"models": named(files, one="a", two="b")})
    asking = asyncio.create_task(ask(member, "two"))
    await asyncio.sleep(0.1)
    assert files["b"] not in Light.alive  # loads take turns
    shut[files["c"]].set()
    await asking
    await until(lambda: sorted(Light.alive) == sorted([files["a"], files["b"]]))


@pytest.mark.parametrize("part", ["load", "expected_bytes"])
async def test_a_load_that_blocks_leaves_its_turn_to_others_and_keeps_nothing(
    member, files, shut, monkeypatch, part
) -> None:
    monkeypatch.setattr(model, "FAILED_S", 0)
    monkeypatch.setattr(models, "LOAD_S", 1)
    gate, calls = threading.Event(), list[str]()
    if part == "load":
        shut[files["b"]] = gate

    def expected(settings: Settings) -> int:
        calls.append(settings.checkpoint)
        assert part == "load" or settings.checkpoint != files["b"] or gate.wait(60)
        return 100

    monkeypatch.setattr(Light, "expected_bytes", expected)
    await member.reconfigure({"models": named(files, one="a", two="b", three="c")})
    await settled(member)
    blocked = asyncio.create_task(ask(member, "two"))
    await until(lambda: files["b"] in (Light.alive if part == "load" else calls))
    monkeypatch.setattr(models, "LOAD_S", 60)
    assert await ask(member, "three") == digest(files, "c")
    for asked in (blocked, ask(member, "two")):
        with pytest.raises(Unavailable, match=r"'two' cannot be loaded: .* did not answer in"):
            await asked
    assert calls.count(files["b"]) == 1  # no thread more
    assert [model.state for model in member.listed().models][1] == "failed"
    gate.set()
    await until(lambda: not member.models.named["two"].blocked)
    assert files["b"] not in Light.alive
    assert await ask(member, "two") == digest(files, "b")


async def test_the_successor_of_a_replica_loads_what_that_had(
    member, files, shut, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    models = named(files, one="a", two="b", three="c")
    changed = member.models.settings.model_copy(update={"models": models})

    every = list[Ingress]()

    async def started() -> Ingress:
        every.append(ingress.Ingress(Light, changed))
        await every[-1].reconfigure({})
        return every[-1]

    def loaded(made: Ingress) -> list[str]:
        return [model.name for model in made.listed().models if model.state == "loaded"]

    first = await started()
    for name in ("two", "three"):
        await ask(first, name)
    three = first.models.named["three"]
    await first.models._unload([three])
    shut[files["b"]] = threading.Event()
    second = await started()
    assert await ask(second, "one") == digest(files, "a")  # and does not wait for the others
    assert loaded(await started()) == ["one"]  # the load of the second one ends processes
    shut[files["b"]].set()
    await second.models._again
    assert loaded(second) == ["one", "two"]
    for made in every:
        made.models._keeper.cancel()


async def test_files_that_do_not_answer_hold_up_no_change(member, files, monkeypatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(model, "LOOK_S", 0.1)
    monkeypatch.setattr(model, "info", lambda settings: gate.wait(60) and None)
    await member.reconfigure({"models": (f"one={files['a']}", "two=absent"), "model_idle_s": 9})
    monkeypatch.setattr(models, "info", lambda settings: member.models.default.info)
    await settled(member)
    assert member.models.settings.model_idle_s == 9
    gate.set()


@pytest.mark.parametrize("member", [{"max_models_bytes": 100}], indirect=True)
async def test_a_model_stays_as_long_as_its_load_took(member, files, shut) -> None:
    member.models.default.size = 100
    shut[files["b"]] = threading.Event()
    asking = asyncio.create_task(ask(member, "two"))
    await until(lambda: files["b"] in Light.alive)
    begun = time.monotonic()
    await asyncio.sleep(0.1)
    shut[files["b"]].set()
    await asking
    two = member.models.named["two"]
    assert begun + 0.2 <= two.stays_until < time.monotonic() + 60
    two.size, two.stays_until = 100, math.inf
    with pytest.raises(Unavailable, match="waits for memory"):
        await member.models.ensure_loaded(member.models.default, Priority(time.monotonic() + 0.2))
    two.stays_until = time.monotonic()
    assert await ask(member, "one") == digest(files, "a")


async def test_a_change_that_fails_is_counted(member, files, tmp_path) -> None:
    def count(outcome: str) -> float:
        return shown(metrics.MODEL_LOADS.labels("one", outcome))

    before = count("loaded"), count("failed")
    await member.reconfigure({"models": (f"one={tmp_path}",)})
    await until(lambda: member._state.startswith("failed"))
    await member.reconfigure({"models": named(files, one="c")})
    await settled(member)
    assert (count("loaded"), count("failed")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("member", [{"max_models_bytes": 100}], indirect=True)
async def test_what_leaves_is_closed_if_nobody_waits_for_the_room(
    member, files, monkeypatch
) -> None:
    member.models.default.size = 100
    closing, close = asyncio.Event(), Light.close

    async def slow(self: Light) -> None:
        closing.set()
        await close(self)

    monkeypatch.setattr(Light, "close", slow)
    asking = asyncio.create_task(ask(member, "two"))
    await asyncio.wait_for(closing.wait(), 20)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    await until(lambda: files["a"] not in Light.alive)


@pytest.mark.parametrize("member", [{"max_models_bytes": 100}], indirect=True)
async def test_a_model_that_is_removed_while_it_waits_is_unloaded(
    member, files, monkeypatch
) -> None:
    monkeypatch.setattr(models, "DRAIN_S", 0)
    one = member.models.default
    one.size = 100
    with one.answering():
        asking = asyncio.create_task(ask(member, "two"))
        await asyncio.sleep(0.1)
        await member.reconfigure({"models": named(files, one="a")})
        await settled(member)
        await asyncio.sleep(0.1)  # the keeper has looked
        await member.reconfigure({"models": named(files, one="a", two="c")})
        await settled(member)
        again = asyncio.create_task(ask(member, "two"))
        await asyncio.sleep(0.1)
    assert await asyncio.wait_for(asking, 20) == digest(files, "b")
    assert await asyncio.wait_for(again, 20) == digest(files, "c")
    await until(lambda: files["b"] not in Light.alive)


@pytest.mark.parametrize("member", [{"max_models_bytes": 100}], indirect=True)
async def test_files_that_are_gone_are_a_failed_load_without_a_path(
    member, tmp_path, files, monkeypatch
) -> None:
    gone = str(tmp_path / "gone")
    await member.reconfigure({"models": (*named(files, one="a"), f"two={gone}")})
    await settled(member)
    threads = set[int]()
    expected = Light.expected_bytes

    def sized(settings: Settings) -> int:
        threads.add(threading.get_ident())
        checkpoint.resolve(settings.checkpoint)
        return expected(settings)

    monkeypatch.setattr(Light, "expected_bytes", sized)
    with pytest.raises(Unavailable, match="model 'two' cannot be loaded") as caught:
        await ask(member, "two")
    assert gone not in str(caught.value)
    assert [model.state for model in member.listed().models] == ["loaded", "failed"]
    assert threading.get_ident() not in threads


async def test_an_error_shows_no_folder_that_a_link_leads_to(
    member, files, tmp_path, monkeypatch
) -> None:
    place = tmp_path / "link"
    place.symlink_to(files["c"])
    await member.reconfigure({"models": (*named(files, one="a"), f"two={place}")})
    await settled(member)

    def damaged(self: Light, settings: Settings) -> None:
        checkpoint.verified(checkpoint.resolve(settings.checkpoint), "none.txt")

    monkeypatch.setattr(Light, "__init__", damaged)
    with pytest.raises(SamClipError, match="model 'two' cannot be loaded") as caught:
        await ask(member, "two")
    assert str(Path(files["c"]).parent) not in str(caught.value)


@pytest.mark.parametrize("member", [{"max_models_bytes": 200}], indirect=True)
async def test_what_others_take_during_a_load_is_not_its_size(member, files, monkeypatch) -> None:
    used = iter([0, 300])
    monkeypatch.setattr(metrics, "used_bytes", lambda device: next(used))
    assert await ask(member, "two") == digest(files, "b")
    assert member.models.named["two"].size == 100


@pytest.mark.parametrize("member", [{"max_models_bytes": 100}], indirect=True)
async def test_a_model_that_was_too_large_is_loaded_when_it_is_not(
    member, files, monkeypatch
) -> None:
    """The first load also imports libraries, and is made again."""
    monkeypatch.setattr(model, "FAILED_S", 0)
    monkeypatch.setattr(Light, "expected_bytes", lambda settings: 1000)
    member.models.default.size = 100
    used = iter([0, 300, 300, 600, 600, 900, 900, 960])
    monkeypatch.setattr(metrics, "used_bytes", lambda device: next(used))
    with pytest.raises(Unavailable, match="it takes 300 bytes"):
        await ask(member, "two")
    assert await ask(member, "two") == digest(files, "b")
    assert member.models.named["two"].size == 60
    assert Light.alive == [files["b"]]


@pytest.mark.parametrize("member", [{"max_models_bytes": 100}], indirect=True)
async def test_new_files_that_are_too_large_change_nothing(member, files, monkeypatch) -> None:
    monkeypatch.setattr(Light, "expected_bytes", lambda settings: 300)
    used = iter([0, 300, 0, 300])
    monkeypatch.setattr(metrics, "used_bytes", lambda device: next(used))
    await member.reconfigure({"models": named(files, one="c", two="b")})
    await until(lambda: member._state.startswith("failed"))
    assert await ask(member, "one") == digest(files, "a")
    assert files["c"] not in Light.alive


async def test_the_memory_of_a_name_that_is_gone_is_none(member, files) -> None:
    member.models.default.size = 100
    member.models._publish("one")
    await member.reconfigure({"models": named(files, other="a", two="b")})
    await settled(member)
    assert shown(metrics.MODEL_BYTES.labels("one")) == 0


async def test_a_new_default_beside_the_one_before_is_a_model_of_its_own(member, files) -> None:
    await member.reconfigure({"models": named(files, three="a", one="a", two="b")})
    await settled(member)
    assert [model.name for model in member.listed().models] == ["three", "one", "two"]
    assert member.models.default is not member.models.named["one"]
    assert await ask(member, "three") == await ask(member, "one") == digest(files, "a")


@pytest.mark.parametrize("member", [{"model_idle_s": 0.05}], indirect=True)
async def test_a_model_stays_until_a_check_of_it_has_ended(member, monkeypatch) -> None:
    async def slow(self: Light) -> dict[str, Any]:
        await asyncio.sleep(0.3)
        return {"model": self.model.digest}

    for name in ("health", "check_health"):
        monkeypatch.setattr(Light, name, slow)
    checked = await asyncio.gather(member.health(), member.check_health())
    assert checked[0]["model"] == member.models.default.info.digest
    await until(lambda: not member.models.default.service)


async def test_one_that_does_not_close_keeps_no_other_from_closing(
    member, files, monkeypatch
) -> None:
    await ask(member, "two")
    close = Light.close

    async def failing(self: Light) -> None:
        await close(self)
        if self.settings.checkpoint == files["a"]:
            raise OSError("Redis has gone")

    monkeypatch.setattr(Light, "close", failing)
    every = [model.service for model in member.models.loaded()]
    await member.models._unload(member.models.loaded())
    assert not Light.alive
    assert not any(map(vars, every))
