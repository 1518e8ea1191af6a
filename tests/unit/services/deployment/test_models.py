"""Several models in one service: by name, on demand, within bounds, and none harms another."""

import asyncio
import base64
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from services.backbone.app import Backbone
from services.batching.priority import TIMEOUT, Priority
from services.deployment import ingress, models
from services.deployment import model as deployed
from services.deployment.ingress import Ingress
from services.gateway import scrape
from services.gateway.adapters.adapter import Applications
from services.heads.classification.app import Classification
from services.heads.segmentation.app import Segmentation
from services.heads.semantic.app import Semantic
from services.request import messages, wire
from services.request.routes import CUSTOM
from services.request.rpc import Service
from services.retrieval.app import Retrieval
from services.settings import Settings
from tests.in_process import ADMITTED, Caller, closed, png, served
from tests.ports import free_port
from tests.tiny import WITHOUT_MASKS, make_tiny_checkpoint
from tests.unit.services.gateway.adapters.conftest import asked_through

LABELS = ["a dog", "a cat", "grass"]
IMAGE = pb.Image(encoded=png())
PETS = pb.IndexItem(id="a", image=IMAGE)
CLICK = pb.SegmentRequest(image=IMAGE, prompts=[pb.Prompt(points=[pb.Point(x=20, y=15)])])
NAMED = [
    rpc
    for rpc, method in RPCS.items()
    if "model" in method.input_type.fields_by_name
    and method.containing_service.full_name != CUSTOM  # the fleet has no head of one's own
]


def classify(model: str = "") -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=[IMAGE], labels=LABELS, model=model)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return three checkpoints by name, of which the last one makes no masks."""
    root = tmp_path_factory.mktemp("several")
    return {
        "one": make_tiny_checkpoint(root / "one"),
        "two": make_tiny_checkpoint(root / "two", seed=1),
        "bare": make_tiny_checkpoint(root / "bare", "radio", **WITHOUT_MASKS),
    }


@pytest.fixture(scope="module")
def library(directories: dict[str, Path]) -> dict[str, SamClip]:
    return {name: SamClip.load(path, dtype="float32") for name, path in directories.items()}


@pytest.fixture(scope="module")
def right(library: dict[str, SamClip]) -> dict[str, tuple[str, list[float]]]:
    """Return the digest of each model, and the scores that it gives to the labels."""
    found = {}
    for name, model in library.items():
        scores = model.classify(model.encode(png(), model.config.size_of("classify")), LABELS)
        by_label = {score.label: score.score for score in scores}
        found[name] = model.digest, [by_label[label] for label in LABELS]
    return found


@dataclass
class Fleet:
    """A service in this process: an ingress of each application, and a caller of all."""

    settings: Settings
    caller: Caller
    members: dict[str, Ingress] = field(default_factory=dict)

    @property
    def backbone(self) -> models.Registry:
        return self.members["BackboneService"].models

    async def states(self) -> dict[str, str]:
        listed = await self.caller("ListModels", pb.ListModelsRequest())
        return {model.name: model.state for model in listed.models}

    async def until(self, name: str, state: str) -> None:
        while (await self.states())[name] != state:
            await asyncio.sleep(0.01)

    async def classified(self, name: str, right: dict[str, Any]) -> None:
        """Assert that a model gives its own answer."""
        digest, scores = right[name]
        answer = await self.caller("Classify", classify(name))
        found = {score.label: score.score for score in answer.results[0].scores}
        assert answer.model.digest == digest
        assert [found[label] for label in LABELS] == pytest.approx(scores, abs=5e-3)


@pytest.fixture
async def fleet(request, settings, directories, cold, monkeypatch) -> AsyncIterator[Fleet]:
    """Serve the three models, the second one also as ``today``, with changed settings."""
    monkeypatch.setattr(models, "AGAIN_S", 0.01)
    monkeypatch.setattr(models, "ROOM_S", 0.01)
    listed = *(f"{name}={directory}" for name, directory in directories.items()), "today=two"
    changes = {"models": listed, "checkpoint": "edge", "dtype": "float32"}
    changes |= {"inner_grpc_port": free_port(), **getattr(request, "param", {})}
    if changes["models"] == "alike":  # a name that the files of the default have in their config
        changes["models"] = (listed[0], f"tiny-edge={directories['two']}")
    settings = Settings(**{**settings.model_dump(), **changes})
    services = Backbone, Classification, Segmentation, Semantic, Retrieval
    members = {service.name: ingress.Ingress(service, settings) for service in services}
    for member in members.values():
        await member.reconfigure({})
    async with served(*members.values(), port=settings.inner_grpc_port) as port:
        made = Fleet(settings, Caller(port), members)
        yield made
        await made.caller.close()
    for member in members.values():
        await closed(member)


async def test_each_name_is_answered_by_its_own_model(fleet: Fleet, right) -> None:
    assert await fleet.states() == {"one": "loaded", "two": "idle", "bare": "idle", "today": "idle"}
    for name in ("two", "bare", "one", "two"):
        await fleet.classified(name, right)
    answers = [await fleet.caller("Classify", classify(name)) for name in ("", "today")]
    assert [answer.model.digest for answer in answers] == [
        right[name][0] for name in ("one", "two")
    ]
    listed = (await fleet.caller("ListModels", pb.ListModelsRequest())).models
    assert [model.digest for model in listed] == [
        right[n][0] for n in ("one", "two", "bare", "two")
    ]
    assert [model.default for model in listed] == [True, False, False, False]
    assert [model.alias_of for model in listed] == ["", "", "", "two"]
    assert [model.without_masks for model in listed] == [False, False, True, False]
    code, reason = await fleet.caller.refused(
        "Segment", pb.SegmentRequest(image=IMAGE, model="bare")
    )
    assert (code, "makes no masks" in reason) == ("INVALID_ARGUMENT", True)
    for name in ("one", "two"):
        request = pb.SegmentRequest()
        request.CopyFrom(CLICK)
        request.model = name
        assert (await fleet.caller("Segment", request)).model.digest == right[name][0]
    text = scrape.render({"": scrape.of_node()}).decode()
    assert 'samclip_model_requests_total{application="classification",model="bare"}' in text


async def test_an_unknown_name_is_refused_with_the_names_that_there_are(fleet: Fleet) -> None:
    assert len(NAMED) == 16
    for rpc in NAMED:
        asked = GetMessageClass(RPCS[rpc].input_type)
        request = messages.to_message(asked, {"model": "absent"}, form=False)
        if rpc == "StreamEverything":
            with pytest.raises(grpc.aio.AioRpcError, match="no model 'absent'"):
                await anext(aiter(fleet.caller.stream(rpc, request)))
            continue
        code, details = await fleet.caller.refused(rpc, request)
        assert code == "NOT_FOUND"
        assert "no model 'absent' is served here, only one, two, bare, today" in details


async def test_requests_for_the_same_unloaded_model_load_it_once(fleet: Fleet, right) -> None:
    loads = Counter[str]()
    load = models.Registry.load

    async def counted(self: models.Registry, settings: Settings) -> tuple[Service, int]:
        loads[self._service.name] += 1
        return await load(self, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.Registry, "load", counted)
        await asyncio.gather(*(fleet.classified("two", right) for _ in range(8)))
    assert loads == {"BackboneService": 1, "ClassificationService": 1}


class Gate:
    """Loads wait for it, in their thread."""

    def __init__(self, patch: pytest.MonkeyPatch, service: type[Service] = Backbone):
        self.open, made = threading.Event(), service.__init__

        def init(self_: Service, settings: Settings, *args: Any, **shared: Any) -> None:
            assert self.open.wait(60)
            made(self_, settings, *args, **shared)

        patch.setattr(service, "__init__", init)


async def test_a_loaded_model_answers_while_another_one_loads(fleet, right, monkeypatch) -> None:
    gate = Gate(monkeypatch)
    waiting = asyncio.create_task(fleet.classified("two", right))
    await fleet.until("two", "loading")
    for _ in range(3):
        await fleet.classified("one", right)
    assert not waiting.done()
    gate.open.set()
    await waiting


async def test_a_load_goes_on_when_its_callers_have_gone(fleet, right, monkeypatch) -> None:
    gate = Gate(monkeypatch)
    code, _ = await fleet.caller.refused("Classify", classify("two"), timeout=1)
    assert code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    gate.open.set()
    await fleet.until("two", "loaded")
    monkeypatch.setattr(models.Registry, "load", None)
    await fleet.caller("EmbedText", pb.EmbedTextRequest(texts=LABELS, model="two"))


async def test_a_damaged_model_fails_alone_and_works_when_it_is_repaired(
    fleet, directories, right, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(deployed, "FAILED_S", 3600)
    file = directories["two"] / checkpoint.TEXT_WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    try:
        code, reason = await fleet.caller.refused("Classify", classify("two"))
        assert (code, "model 'two' cannot be loaded: two/" in reason) == ("UNAVAILABLE", True)
        assert str(directories["two"]) not in reason
        (_, two, *_) = (await fleet.caller("ListModels", pb.ListModelsRequest())).models
        assert (two.state, two.reason) == ("failed", reason)
        for name in ("one", "bare"):
            await fleet.classified(name, right)
    finally:
        file.write_bytes(whole)
    assert (await fleet.caller.refused("Classify", classify("two")))[1] == reason  # a pause
    monkeypatch.setattr(deployed, "FAILED_S", 0)
    await fleet.classified("two", right)


@pytest.mark.parametrize("fleet", [{"models_at_start": "all"}], indirect=True)
async def test_all_may_be_loaded_at_the_start(fleet: Fleet, right) -> None:
    assert set((await fleet.states()).values()) == {"loaded"}


async def test_a_damaged_default_model_does_not_start(settings, tmp_path) -> None:
    settings = settings.model_copy(update={"models": (f"one={tmp_path}",), "checkpoint": "edge"})
    with pytest.raises(CheckpointError):
        await ingress.Ingress(Backbone, settings).reconfigure({})


@pytest.mark.parametrize("fleet", [{"model_idle_s": 0.05}], indirect=True)
async def test_idle_models_are_unloaded_and_come_back(fleet: Fleet, right) -> None:
    for name in ("two", "one", "two"):
        await fleet.classified(name, right)
        await fleet.until(name, "idle")
    assert (await fleet.members["BackboneService"].health())["model"]["digest"] == right["one"][0]
    assert (await fleet.caller("ListModels", pb.ListModelsRequest())).models[0].bytes == 0


def sized(patch: pytest.MonkeyPatch, each: int) -> None:
    """Let each model that is loaded take so many bytes."""
    load = models.Registry.load

    async def measured(self: models.Registry, settings: Settings) -> tuple[Service, int]:
        service, _ = await load(self, settings)
        return service, each

    patch.setattr(models.Registry, "load", measured)
    patch.setattr(Backbone, "expected_bytes", lambda settings: each)


BOUND = {"max_models_bytes": 250}


@pytest.fixture
def hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, 100)


@pytest.mark.parametrize("fleet", [BOUND], indirect=True)
async def test_the_model_that_was_used_longest_ago_makes_room(hundred, fleet: Fleet, right) -> None:
    for name, idle in (
        ("two", "bare"),
        ("one", "bare"),
        ("bare", "two"),
        ("two", "one"),
        ("bare", "one"),
        ("one", "two"),
    ):
        answer = await fleet.caller("EmbedText", pb.EmbedTextRequest(texts=["a"], model=name))
        assert answer.model.digest == right[name][0]
        states = await fleet.states()
        del states["today"]
        assert states.pop(idle) == "idle"
        assert set(states.values()) == {"loaded"}


@pytest.mark.parametrize("fleet", [{"max_models_bytes": 100}], indirect=True)
async def test_what_finds_no_room_beside_models_in_use_waits_and_is_then_unavailable(
    hundred, fleet: Fleet, right
) -> None:
    impatient = Caller(fleet.caller.port, (*ADMITTED, (TIMEOUT, "3S")))
    with fleet.backbone.default.answering():
        for request in (pb.EmbedTextRequest(texts=LABELS, model="two"), classify("two")):
            rpc = type(request).__name__.removesuffix("Request")
            code, reason = await impatient.refused(rpc, request)
            assert (code, "waits for memory that others use" in reason) == ("UNAVAILABLE", True)
        waiting = asyncio.create_task(fleet.classified("two", right))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    await waiting
    await impatient.close()
    assert (await fleet.states())["one"] == "idle"


@pytest.mark.parametrize("fleet", [{"max_models_bytes": 100}], indirect=True)
async def test_a_stream_keeps_its_model_until_it_ends(hundred, fleet: Fleet, right) -> None:
    request = pb.SegmentEverythingRequest(image=IMAGE, points_per_side=16, model="one")
    updates = aiter(fleet.caller.stream("StreamEverything", request))
    first = await anext(updates)
    await fleet.classified("bare", right)  # the stream's embeddings are in its head
    assert first.model.digest == right["one"][0]
    assert [update async for update in updates]


@pytest.mark.parametrize(
    "fleet", [{"max_models_bytes": 100, "request_timeout_s": 3600}], indirect=True
)
async def test_models_that_come_and_go_give_their_own_answers(
    hundred, fleet: Fleet, library: dict[str, SamClip]
) -> None:
    names = [*library]

    async def ask(number: int) -> None:
        for turn in range(6):
            name, text = names[(number + turn) % 3], f"a dog {number} {turn}"
            embed = pb.EmbedTextRequest(texts=[text], model=name)
            answer = await fleet.caller("EmbedText", embed, timeout=600)
            (expected_D,) = library[name].embed_text([text])
            assert wire.from_tensor(answer.tensor)[0] == pytest.approx(expected_D, abs=1e-3)
            image = pb.Image(encoded=png(number, noise=turn))
            if name != "bare":
                click = pb.SegmentRequest(image=image, prompts=CLICK.prompts, model=name)
                answer = await fleet.caller("Segment", click, timeout=600)
                assert answer.model.digest == library[name].digest
                assert len(fleet.backbone.loaded()) <= 1

    await asyncio.gather(*map(ask, range(4)))


async def test_a_model_that_is_too_large_is_refused(settings, directories, monkeypatch) -> None:
    sized(monkeypatch, 300)
    own = f"one={directories['one']}"
    settings = Settings(
        **{**settings.model_dump(), **BOUND, "models": (own,), "checkpoint": "edge"}
    )
    with pytest.raises(CheckpointError, match="takes 300 bytes, and max_models_bytes is 250"):
        await ingress.Ingress(Classification, settings).reconfigure({})


async def test_a_collection_is_answered_by_its_own_model(fleet: Fleet, right) -> None:
    call, (one, two) = fleet.caller, (right["one"][0], right["two"][0])
    for name, model in (("mine", "two"), ("mine", ""), ("other", "")):
        index = pb.IndexRequest(collection=name, items=[PETS], model=model)
        assert (await call("Index", index)).indexed == 1
    described = {}
    for model in ("", "one", "today"):
        found = (await call("Describe", pb.DescribeRequest(model=model))).collections
        described[model] = {each.name: each.model_digest for each in found}
    both = {"mine": two, "other": one}
    assert described == {"": both, "one": {"other": one}, "today": {"mine": two}}
    for name, digest in both.items():
        for query in ({"text": "a dog"}, {"image": IMAGE}, {"id": "a"}):
            answer = await call("Search", pb.SearchRequest(collection=name, **query))
            assert answer.model.digest == digest
            assert [hit.id for hit in answer.hits] == ["a"] * ("id" not in query)
    assert (await call("ListItems", pb.ListItemsRequest(collection="mine"))).items[0].id == "a"
    for request in (
        pb.SearchRequest(collection="mine", text="a dog", model="one"),
        pb.IndexRequest(collection="mine", items=[PETS], model="one"),
        pb.ListItemsRequest(collection="mine", model="one"),
        pb.DeleteRequest(collection="mine", ids=["a"], model="one"),
        pb.DeleteRequest(collection="mine", all=True, model="one"),
        pb.DescribeRequest(collection="mine", model="one"),
    ):
        rpc = type(request).__name__.removesuffix("Request")
        await call.refuses(rpc, (request, "collection 'mine' was made with model"))
    assert (await call("Delete", pb.DeleteRequest(collection="mine", ids=["a"]))).deleted == 1
    assert (await call("Delete", pb.DeleteRequest(collection="mine", all=True))).deleted == 0


async def test_a_collection_whose_model_is_damaged_is_listed_and_deleted(
    fleet, monkeypatch
) -> None:
    for id in "ab":
        item = pb.IndexItem(id=id, image=IMAGE)
        index = pb.IndexRequest(collection="mine", items=[item], model="two")
        assert (await fleet.caller("Index", index)).indexed == 1
    retrieval = fleet.members["RetrievalService"].models
    await retrieval._unload([retrieval.named["two"]])
    monkeypatch.setattr(models.Registry, "load", None)
    described = await fleet.caller("Describe", pb.DescribeRequest(collection="mine"))
    listed = await fleet.caller("ListItems", pb.ListItemsRequest(collection="mine"))
    assert (described.collections[0].count, [item.id for item in listed.items]) == (2, ["a", "b"])
    for deletion in ({"ids": ["a"]}, {"all": True}):
        request = pb.DeleteRequest(collection="mine", **deletion)
        assert (await fleet.caller("Delete", request)).deleted == 1
    assert not (await fleet.caller("Describe", pb.DescribeRequest())).collections


@pytest.mark.parametrize("first", ["ClassificationService", "BackboneService"])
async def test_files_that_are_changed_where_they_are_answer_after_a_reload(
    fleet, directories, right, tmp_path, first
) -> None:
    """A head loads them first, or the backbone."""
    own = shutil.copytree(directories["two"], tmp_path / "own")
    changed = (*fleet.settings.models[:1], f"two={own}")
    for member in (fleet.members["BackboneService"], fleet.members["ClassificationService"]):
        await member.reconfigure({"models": changed})
        while member._state == "under way":
            await asyncio.sleep(0.01)
        await member.models.ensure_loaded(
            member.models.named["two"], Priority()
        )  # and nothing cached
    fitted = replace(checkpoint.read_config(own).fitted, text_weight=0.4)
    new = checkpoint.calibrate(own, fitted, {}), right["two"][1]
    two = fleet.members[first].models.named["two"]
    await fleet.members[first].models._unload([two])
    await asyncio.gather(*(fleet.classified("two", {"two": new}) for _ in range(3)))
    assert fleet.members[first].models.named["two"].identity == new[0]


async def test_vectors_go_to_the_model_that_made_them(fleet: Fleet, right) -> None:
    embed = pb.EmbedRequest(image=IMAGE, outputs=[pb.CLIP_POOLED], inline=True, model="two")
    made = await fleet.caller("Embed", embed)
    vector_D = wire.from_tensor(made.tensors[0]).astype("<f4")
    vector = (vector_D / np.linalg.norm(vector_D)).tobytes()
    item = pb.IndexItem(id="a", vector=vector)
    index = pb.IndexRequest(collection="given", items=[item], made_by=made.model)
    assert (await fleet.caller("Index", index)).indexed == 1
    search = pb.SearchRequest(collection="given", image=IMAGE)
    found = await fleet.caller("Search", search)
    assert found.model.digest == right["two"][0]
    assert found.hits[0].score == pytest.approx(1, abs=1e-2)


async def test_a_concept_is_of_the_model_that_is_named(fleet: Fleet, right) -> None:
    example = pb.Example(image=IMAGE, box=pb.Box(x_min=5, y_min=5, x_max=30, y_max=25))
    put = pb.PutConceptRequest(name="mine", examples=[example], model="two")
    assert (await fleet.caller("PutConcept", put)).concept.model_digest == right["two"][0]
    ask = classify("two")
    ask.labels.append("concept:mine")
    assert (await fleet.caller("Classify", ask)).model.digest == right["two"][0]
    ask.model = "one"
    await fleet.caller.refuses("Classify", (ask, "concept 'mine' was made with model"))


@pytest.fixture
async def post(fleet: Fleet) -> AsyncIterator[Callable[[str, object], Awaitable[Any]]]:
    """Return a function that asks the adapters: the JSON of the answer, or its status."""
    asked = Applications(fleet.settings)
    async with asked_through(asked) as adapters:

        async def post(path: str, body: object = None) -> Any:
            reply = await adapters.request("POST" if body else "GET", path, json=body)
            return reply.json() if reply.is_success else reply.status_code

        yield post
    await asked.close()


async def test_embeddings_of_other_protocols_name_their_model(post) -> None:
    default, *names = [m["id"] for m in (await post("/v1/models"))["data"]]
    assert names == ["two", "bare", "today"]
    vectors = {}
    for name in (default, "one", *names):
        body = {"model": name, "input": "a dog"}
        reply = await post("/v1/embeddings", body)
        vectors[name] = reply["data"][0]["embedding"]
        again = await post("/v1/embeddings", {**body, "model": reply["model"]})
        assert again["model"] == reply["model"]
        assert again["data"][0]["embedding"] == pytest.approx(vectors[name])
    assert vectors["today"] == pytest.approx(vectors["two"])
    assert vectors[default] == pytest.approx(vectors["one"])
    assert vectors["one"] != pytest.approx(vectors["two"], abs=0.1)
    assert await post("/v1/embeddings", {"model": "absent", "input": "a dog"}) == 404

    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a dog"]}
    for version, name in (("1", "one"), ("two", "two"), ("bare", "bare")):
        path = f"/v2/models/embed-text/versions/{version}/infer"
        reply = await post(path, {"inputs": [text]})
        assert reply["model_version"] == version
        assert reply["outputs"][0]["data"] == pytest.approx(vectors[name], abs=1e-3)
    assert await post("/v2/models/embed-text/versions/9/infer", {"inputs": [text]}) == 404
    index = await post("/v2/repository/index", {"ready": True})
    versions = [each["version"] for each in index if each["name"] == "classify"]
    assert versions == ["1", "one", *names]


@pytest.mark.parametrize("fleet", [{"models": "alike"}], indirect=True)
async def test_a_served_name_is_not_taken_for_that_of_the_default_checkpoint(post, right) -> None:
    default = (await post("/v1/models"))["data"][0]["id"]
    for name, answers in ((default, "one"), ("one", "one"), ("tiny-edge", "two")):
        reply = await post("/v1/embeddings", {"model": name, "input": "a dog"})
        assert reply["model"].endswith(right[answers][0][:12])


async def test_tools_of_annotators_choose_a_model(post, right) -> None:
    names = ["one", "two", "bare", "today"]
    config = """<View><Image name="i" value="$i"/><Choices name="c" toName="i">
        <Choice value="a dog"/><Choice value="a cat"/></Choices></View>"""
    versions = (await post("/adapters/label-studio/versions"))["versions"]
    assert versions == names
    uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    task = {"label_config": config, "tasks": [{"data": {"i": uri}}]}
    for version, name in (("two", "two"), ("gone@123", "one"), (None, "one")):
        body = {**task, "model_version": version}
        (found,) = (await post("/adapters/label-studio/predict", body))["results"]
        assert f"@{right[name][0][:12]}" in found["model_version"]

    listed = (await post("/adapters/x-anylabeling/v1/models"))["data"]
    assert [*listed] == ["tiny-edge", "two", "bare", "today"]
    assert listed["bare"]["display_name"].endswith("no masks")
    body = {"image": uri, "params": {"marks": [{"type": "point", "data": [10, 12]}]}}
    for name in ("tiny-edge", "one", "two"):
        reply = await post("/adapters/x-anylabeling/v1/predict", {**body, "model": name})
        assert reply["success"]
    path = "/adapters/x-anylabeling/v1/predict"
    assert await post(path, {**body, "model": "bare"}) == 400
