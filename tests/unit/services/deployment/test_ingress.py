"""Changes of the checkpoint in this process, with two backbone replicas, heads and real gRPC."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.engine.base import Dtype
from samclip_core.errors import AnotherCheckpoint, CheckpointError, Unavailable
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from services.backbone.app import Backbone
from services.deployment import ingress, models
from services.deployment.ingress import Ingress
from services.deployment.model import ServedModel
from services.deployment.models import Registry
from services.gateway import scrape
from services.heads.classification.app import Classification
from services.heads.segmentation.app import Segmentation
from services.request.context import CHECKPOINT, GRAPHS, RequestContext
from services.request.rpc import Service
from services.retrieval.app import Retrieval
from services.settings import Settings, SettingsError
from tests.converted import make_converted
from tests.in_process import Caller, closed, png, served
from tests.ports import free_port
from tests.tampered import change_graph, edit, list_again
from tests.tiny import WITHOUT_MASKS, make_tiny_checkpoint

LABELS = ["a dog", "a cat", "grass"]
CLASSIFY = pb.ClassifyRequest(images=[pb.Image(encoded=png())], labels=LABELS)
SEGMENT = pb.SegmentRequest(
    image=pb.Image(encoded=png()), prompts=[pb.Prompt(points=[pb.Point(x=20, y=15)])]
)


class Replicas:
    """A round-robin balancer over replicas."""

    def __init__(self, *replicas: Ingress):
        self.name, self.application = replicas[0].name, replicas[0].application
        self._next = cycle(replicas)

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._next), name)


@pytest.fixture(scope="module")
def directories(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Return the directories of an ``edge`` and of another, or of a converted model."""
    root = tmp_path_factory.mktemp("other")
    name = getattr(request, "param", "edge")
    if name == "edge":
        other = make_tiny_checkpoint(root / "tiny", seed=1)
    else:
        other = make_converted(name, request.getfixturevalue("data_root"), root / name)
    return str(tiny_checkpoint), str(other)


@pytest.fixture
async def fleet(
    settings, directories, cold, monkeypatch
) -> AsyncIterator[tuple[Caller, list[Ingress]]]:
    """Run two backbone replicas and the heads on the first checkpoint; yield them and a caller."""
    monkeypatch.setattr(models, "AGAIN_S", 0.01)
    settings = settings.model_copy(update={"inner_grpc_port": free_port(), "cache_bytes": 0})
    classes = Backbone, Backbone, Classification, Segmentation, Retrieval
    members = [ingress.Ingress(service, settings) for service in classes]
    for member in members:
        await member.reconfigure({"checkpoint": directories[0]})
    replicas: Any = Replicas(*members[:2])
    async with served(replicas, *members[2:], port=settings.inner_grpc_port) as port:
        caller = Caller(port)
        yield caller, members
        await caller.close()
    for member in members:
        await closed(member)


def held(member: Ingress) -> list[Service]:
    """Return what is loaded of the default model, the current files first."""
    return [model.service for model in member.models.of_name(member.models.default)]


async def settle(member: Ingress) -> None:
    while member._state == "under way":
        await asyncio.sleep(0.01)


async def change(member: Ingress, **config: object) -> None:
    """Give a replica another ``user_config``, and wait until it is applied or has failed."""
    await member.reconfigure(config)
    await settle(member)


def digests(member: Ingress) -> list[str]:
    return [one.model.digest for one in held(member)]


def expected(directory: str, dtype: Dtype) -> tuple[str, list[float]]:
    """Return the digest, the score of each label, and the predicted IoU of a click's mask."""
    model = SamClip.load(directory, dtype=dtype)
    scores = model.classify(model.encode(png(), model.config.size_of("classify")), LABELS)
    (mask,) = model.segment(png(), [Prompt(points=((20, 15),))], multimask=False)
    found = [next(s.score for s in scores if s.label == label) for label in LABELS]
    return model.digest, [*found, float(mask.predicted_iou_M[0])]


@pytest.mark.parametrize("directories", ["edge", "radio"], indirect=True)
async def test_no_request_is_lost_or_answered_by_two(fleet, settings, directories, monkeypatch):
    """To another checkpoint, of the same kind or of another, and back."""
    caller, members = fleet
    right = dict(expected(directory, settings.dtype) for directory in directories)
    seen: list[str] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            answer = await caller("Classify", CLASSIFY)
            found = {score.label: score.score for score in answer.results[0].scores}
            *scores, _ = right[answer.model.digest]
            assert [found[label] for label in LABELS] == pytest.approx(scores, abs=2e-3)
            segmented = await caller("Segment", SEGMENT)
            *_, iou = right[segmented.model.digest]
            assert segmented.results[0].masks[0].predicted_iou == pytest.approx(iou, abs=1e-2)
            seen.extend((answer.model.digest, segmented.model.digest))

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            assert not any(task.done() for task in askers)
            await asyncio.sleep(0.01)

    async def swap_all(directory: str, old: str, new: str) -> None:
        seen.clear()
        await until(lambda: seen.count(old) > 8)
        for member in reversed(members):  # the heads first, one backbone replica last
            await member.reconfigure({"checkpoint": directory})
            if member is members[1]:
                await settle(members[2])
        for member in members:
            await settle(member)
        seen.clear()
        await until(lambda: len(seen) > 16)  # those sent before the swap ended are answered
        with monkeypatch.context() as patch:
            patch.setattr(models, "DRAIN_S", 0)
            await until(lambda: all(digests(member) == [new] for member in members))
        assert set(seen[-8:]) == {new}
        text = scrape.render({"": scrape.of_node()}).decode()
        assert f'digest="{new}"' in text
        assert f'digest="{old}"' not in text

    askers = [asyncio.create_task(ask()) for _ in range(4)]
    await swap_all(directories[1], *right)
    await swap_all(directories[0], *reversed(right))
    stop.set()
    await asyncio.gather(*askers)


async def test_a_damaged_checkpoint_changes_nothing(fleet, directories, tmp_path, caplog):
    caller, members = fleet
    damaged = shutil.copytree(directories[1], tmp_path / "damaged")
    (damaged / checkpoint.TEXT_WEIGHTS).write_bytes(b"damaged")
    for member in members:
        await member.reconfigure({"checkpoint": str(damaged)})
    for member in members:
        await settle(member)
        assert (await member.health())["swap"].startswith("failed")
    assert "is missing or differs" in caplog.text
    answer = await caller("Classify", CLASSIFY)
    assert answer.model.digest == checkpoint.digest(Path(directories[0]))


async def test_settings_of_a_swap_that_fails_are_not_applied(fleet, directories, tmp_path):
    _, (backbone, *_) = fleet
    batcher = held(backbone)[0].embedder.queue
    await change(backbone, checkpoint=str(tmp_path / "absent"), batch_wait_ms=70)
    assert batcher._max_wait_s != 0.07
    await change(backbone, checkpoint=directories[0], batch_wait_ms=70)
    assert batcher._max_wait_s == 0.07


async def test_heads_stay_with_what_the_backbone_has(fleet, directories):
    caller, members = fleet
    await members[2].reconfigure({"checkpoint": directories[1]})
    await asyncio.sleep(0.3)
    assert (await members[2].health())["swap"] == "under way"
    answer = await caller("Classify", CLASSIFY)
    assert answer.model.digest == checkpoint.digest(Path(directories[0]))
    await change(members[2], checkpoint=directories[0])  # cancels the swap
    assert (await members[2].health())["swap"] == "done"


async def test_back_to_what_is_still_held_loads_nothing(fleet, directories, monkeypatch):
    _, (backbone, *_) = fleet
    old, new = (checkpoint.digest(Path(directory)) for directory in directories)
    await change(backbone, checkpoint=directories[1])
    assert digests(backbone) == [new, old]
    monkeypatch.setattr(Registry, "load", None)
    await change(backbone, checkpoint=directories[0])
    assert digests(backbone) == [old, new]


async def test_the_memory_of_the_one_before_is_free_again(fleet, directories, monkeypatch):
    _, (backbone, *_) = fleet
    gc.freeze()  # Serve does so
    weights = weakref.ref(held(backbone)[0].embedder.model)
    monkeypatch.setattr(models, "DRAIN_S", 0)
    await change(backbone, checkpoint=directories[1])
    while len(held(backbone)) > 1:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # until it is closed
    gc.unfreeze()  # or no test after this one could collect anything
    assert digests(backbone) == [checkpoint.digest(Path(directories[1]))]
    assert weights() is None


async def test_who_names_a_checkpoint_gets_that_one_or_none(fleet, directories):
    _, (backbone, *_) = fleet
    old, new = (checkpoint.digest(Path(directory)) for directory in directories)
    request = pb.EmbedTextRequest(texts=["a dog"])
    async with served(backbone) as port:
        for digest, code in ((old, "OK"), (new, "ABORTED")):
            caller = Caller(port, ((CHECKPOINT, digest),))
            if code == "OK":
                assert (await caller("EmbedText", request)).model.digest == digest
            else:
                assert (await caller.refused("EmbedText", request))[0] == code
            await caller.close()


class Unsteady(Service):
    """A service that has lost its checkpoint after some answers."""

    name, application = "SegmentationService", "segmentation"

    def __init__(self, settings: Settings, graphs: str, answers: int):
        super().__init__(settings)
        self.model, self.answers = pb.ModelInfo(digest="0" * 64, graphs=graphs), answers

    async def StreamEverything(
        self, request: pb.SegmentEverythingRequest, context: RequestContext
    ) -> AsyncGenerator[pb.EverythingUpdate, None]:
        for _ in range(self.answers):
            yield pb.EverythingUpdate(model=self.model)
        raise AnotherCheckpoint("the backbone has another")


@pytest.mark.parametrize(("answers", "graphs"), [(0, "22"), (1, "1")])
async def test_a_stream_that_has_begun_is_not_continued_by_another_checkpoint(
    settings, answers, graphs
):
    member = ingress.Ingress(Unsteady, settings)
    now, before = (ServedModel(settings.default, settings) for _ in range(2))
    now.take(Unsteady(settings, "1", answers))
    before.take(Unsteady(settings, "2", 2))
    member.models.named, member.models.others = {settings.default: now}, [before]
    request = pb.SegmentEverythingRequest()
    updates = member.answers("StreamEverything", request, RequestContext())
    assert [(await anext(updates)).model.graphs for _ in graphs] == [*graphs]
    with pytest.raises(Unavailable, match="the backbone has another"):
        await anext(updates)


async def test_batches_change_while_it_runs_and_go_back_to_the_settings(fleet, directories):
    _, (backbone, *_) = fleet
    batcher = held(backbone)[0].embedder.queue
    for config, limits in (
        ({"max_batch_size": 2, "batch_wait_ms": 50}, (2, 0.05)),
        ({"batch_wait_ms": 1}, (4, 0.001)),
        ({"max_batch": 9}, (4, 0.001)),  # no such setting
        ({"max_batch_size": 65, "batch_wait_ms": 9}, (4, 0.001)),  # more than max_queue
    ):
        await change(backbone, **config)
        assert (batcher._max_size, batcher._max_wait_s) == limits


@pytest.mark.parametrize(
    ("config", "error"),
    [({"checkpoint": "none"}, CheckpointError), ({"max_queue": 9}, SettingsError)],
)
async def test_at_start_there_is_nothing_to_stay_with(settings, config, error):
    with pytest.raises(error):
        await ingress.Ingress(Backbone, settings).reconfigure(config)


async def test_a_collection_is_kept_over_a_swap(fleet, directories):
    caller, members = fleet
    index = pb.IndexRequest(
        collection="pets", items=[pb.IndexItem(id="a", image=pb.Image(encoded=png()))]
    )
    await caller("Index", index)
    for member in members:
        await member.reconfigure({"checkpoint": directories[1]})
        await settle(member) if member.name == "BackboneService" else None
    await settle(members[-1])
    (found,) = (await caller("Describe", pb.DescribeRequest())).collections
    assert (found.count, found.model_digest) == (1, checkpoint.digest(Path(directories[0])))
    refused = await caller.refused("Search", pb.SearchRequest(collection="pets", text="a dog"))
    assert "samclip reindex" in refused[1]
    index.collection = "pets-2"
    assert (await caller("Index", index)).indexed == 1


async def test_a_stream_keeps_its_checkpoint_and_the_next_has_the_new_one(fleet, directories):
    caller, members = fleet
    everything = pb.SegmentEverythingRequest(image=pb.Image(encoded=png()), points_per_side=32)
    first = aiter(caller.stream("StreamEverything", everything))
    old = (await anext(first)).model.digest
    for member in members:
        await change(member, checkpoint=directories[1])
    async for update in first:  # to its end, without an error
        assert not update.HasField("model")
    updates = [update async for update in caller.stream("StreamEverything", everything)]
    assert updates[0].model.digest not in ("", old)


async def test_masks_go_and_come_back_with_the_checkpoint(fleet, directories, tmp_path):
    caller, members = fleet
    bare = make_tiny_checkpoint(tmp_path / "bare", "radio", **WITHOUT_MASKS)
    for directory, masks in ((bare, False), (directories[0], True)):
        for member in members:
            await change(member, checkpoint=str(directory))
        if masks:
            assert (await caller("Segment", SEGMENT)).results[0].masks
        else:
            await caller.refuses("Segment", (SEGMENT, "'tiny-v4' makes no masks"))
        assert (await caller("Classify", CLASSIFY)).model.without_masks is not masks


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the bundled checkpoint, and one with the same weights and other graphs."""
    edge = checkpoint.resolve("edge")
    other = Path(shutil.copytree(edge, tmp_path_factory.mktemp("graphs") / "edge"))
    change_graph(other)
    list_again(other)
    return edge, other


async def test_other_graphs_of_the_same_weights_are_swapped(settings, graphs, cold, monkeypatch):
    monkeypatch.setattr(models, "AGAIN_S", 0.01)
    settings = settings.model_copy(
        update={"inner_grpc_port": free_port(), "dtype": "float32", "checkpoint": str(graphs[0])}
    )
    members = [ingress.Ingress(service, settings) for service in (Backbone, Classification)]
    for member in members:
        await member.reconfigure({})
    backbone, head = members
    digest, digests_ = checkpoint.digest(graphs[0]), [*map(checkpoint.graphs_digest, graphs)]
    async with served(backbone, head, port=settings.inner_grpc_port) as port:
        caller = Caller(port)
        before = await caller("Classify", CLASSIFY)
        await head.reconfigure({"checkpoint": str(graphs[1])})
        await asyncio.sleep(0.3)
        assert (await head.health())["swap"] == "under way"  # the backbone has other graphs
        assert (await caller("Classify", CLASSIFY)).model == before.model
        await backbone.reconfigure({"checkpoint": str(graphs[1])})
        for member in (backbone, head):
            await settle(member)
            assert len(held(member)) == 2
        after = await caller("Classify", CLASSIFY)
        assert (before.model.digest, after.model.digest) == (digest, digest)
        assert [before.model.graphs, after.model.graphs] == digests_
        assert not after.results[0].image.cached  # the entry of the other graphs is not used
        assert after.results[0].scores != before.results[0].scores
        request = pb.EmbedTextRequest(texts=["a dog"])
        for graph in digests_:  # both are held: who names one gets it
            named = Caller(port, ((CHECKPOINT, digest), (GRAPHS, graph)))
            assert (await named("EmbedText", request)).model.graphs == graph
            await named.close()
        named = Caller(port, ((CHECKPOINT, digest), (GRAPHS, "0" * 64)))
        assert (await named.refused("EmbedText", request))[0] == "ABORTED"
        await named.close()
        monkeypatch.setattr(models, "DRAIN_S", 0)
        for member in members:
            while len(held(member)) > 1:
                await asyncio.sleep(0.01)
        assert f'digest="{digest}"' in scrape.render({"": scrape.of_node()}).decode()
        await caller.close()
    for member in members:
        await closed(member)


async def test_the_same_weights_without_graphs_are_swapped_too(
    settings, graphs, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "AGAIN_S", 0.01)
    without = Path(shutil.copytree(graphs[0], tmp_path / "edge"))
    edit(without, {})
    directories = [str(without), str(graphs[0])]
    backbone = ingress.Ingress(Backbone, settings.model_copy(update={"dtype": "float32"}))
    for directory in (*directories, *directories):
        await change(backbone, checkpoint=directory)
        served = held(backbone)[0].model.graphs
        assert served == checkpoint.graphs_digest(Path(directory))
    assert len(held(backbone)) == 2
    await closed(backbone)
