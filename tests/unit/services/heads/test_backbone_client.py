"""A head asks the backbone only for what it does not know, and keeps embeddings apart."""

import asyncio
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb
from samclip.v1.samclip_pb2_grpc import (
    BackboneServiceServicer,
    add_BackboneServiceServicer_to_server,
)

from samclip_core.errors import (
    AnotherCheckpoint,
    DeadlineExceeded,
    ImageTooLarge,
    InvalidImage,
    KeyUnknown,
    Overloaded,
    Unavailable,
    UnsupportedImage,
)
from samclip_core.io.image import image_key
from services.backbone.app import Backbone
from services.batching import threads
from services.batching.priority import Priority
from services.cache import embedding_cache
from services.cache.embedding_cache import EmbeddingCache
from services.cache.memory import MemoryTier
from services.heads import backbone_client
from services.heads.backbone_client import BackboneClient
from services.heads.head import HeadService
from services.observability import metrics
from services.request import calls, wire
from services.request.calls import UNLIMITED, Peer
from services.request.context import KEY, SCOPES, TENANT, Caller, RequestContext
from tests import tls
from tests.fake_model import SIZE, FakeModel, text_vector
from tests.faults import relay
from tests.in_process import ADMITTED, ANYBODY, png, served
from tests.shown import shown

MAX_BYTES = 2**23


def peer(port: int, metadata: tuple[tuple[str, str], ...] = ADMITTED) -> Peer:
    return Peer("backbone", f"127.0.0.1:{port}", metadata)


def client_of(port: int, digest: str, capacity: int = 0) -> BackboneClient:
    caches = lambda dtype: EmbeddingCache(MemoryTier(capacity))  # noqa: E731
    return BackboneClient(peer(port), SIZE, digest, caches, MAX_BYTES)


def asked() -> float:
    return shown(metrics.REQUESTS.labels("BackboneService", "Embed", "OK"))


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
async def backbone(model, settings):
    service = Backbone(settings.model_copy(update={"max_queue": 4}), model)
    model.batches.clear()
    model.texts.clear()
    async with served(service) as port:
        client = client_of(port, model.digest)
        yield client
        model.release()
        await client.close()


async def test_features_by_file_and_by_key(backbone):
    info, features = await backbone.features(
        ANYBODY, pb.Image(encoded=png(100)), pb.SAM, pb.CLIP_POOLED
    )
    assert (info.key, info.width, info.height, info.cached) == (image_key(png(100)), 40, 30, False)
    assert features.geometry.size == SIZE
    assert features.sam_Dhw.shape == (4, 4, 4)
    assert features.clip_dense_Dhw is None
    info, again = await backbone.features(ANYBODY, pb.Image(key=info.key), pb.CLIP_POOLED)
    assert info.cached
    np.testing.assert_array_equal(again.clip_pooled_D, features.clip_pooled_D)


async def test_an_image_or_a_key_that_is_too_long_is_neither_hashed_nor_sent(monkeypatch):
    client = client_of(1, "digest")  # no server listens there
    monkeypatch.setattr(threads.Threads, "image_key", None)
    for image, error in (
        (pb.Image(encoded=bytes(MAX_BYTES + 1)), ImageTooLarge),
        (pb.Image(encoded=b""), InvalidImage),
        (pb.Image(key="0" * 65), InvalidImage),
    ):
        with pytest.raises(error):
            await client.features(ANYBODY, image, pb.CLIP_POOLED)
    await client.close()


async def test_what_this_process_has_seen_is_not_asked_for_again(model, settings):
    async with served(Backbone(settings, model)) as port:
        client = client_of(port, model.digest, 2**20)
        image = pb.Image(encoded=png(100))
        info, features = await client.features(ANYBODY, image, pb.SAM)
        before = asked()
        for again in (image, pb.Image(key=info.key)):
            found, same = await client.features(ANYBODY, again, pb.SAM)
            assert found == pb.ImageInfo(key=info.key, width=40, height=30, cached=True)
            np.testing.assert_array_equal(same.sam_Dhw, features.sam_Dhw)
            assert same.geometry == features.geometry
        assert asked() == before
        found, both = await client.features(
            ANYBODY, image, pb.SAM, pb.CLIP_DENSE
        )  # CLIP_DENSE was not requested before
        assert asked() == before + 1
        assert found.cached
        assert both.clip_dense_Dhw is not None
        await client.close()


async def test_errors_pass_through_unchanged_and_a_bug_is_a_bug_here(backbone, model):
    for image, error, message in (
        (pb.Image(encoded=b"GIF89a" + bytes(9)), UnsupportedImage, "GIF files are not supported"),
        (pb.Image(encoded=png(1)[:100]), InvalidImage, "damaged or truncated"),
        (pb.Image(key="0" * 64), KeyUnknown, "send the image"),
    ):
        with pytest.raises(error, match=message) as caught:
            await backbone.features(ANYBODY, image, pb.SAM)
        assert type(caught.value) is error
    model.failure = ValueError("secret")
    with pytest.raises(RuntimeError, match="internal error; request id") as bug:
        await backbone.features(ANYBODY, pb.Image(encoded=png(1)), pb.SAM)
    assert "secret" not in str(bug.value)


async def test_an_embedding_larger_than_grpcs_default_limit_passes(backbone):
    large = png(1, 1500, 1500)
    assert len(large) > 4 * 2**20
    info, _ = await backbone.features(ANYBODY, pb.Image(encoded=large), pb.SAM)
    assert info.width == 1500


async def test_overload_and_deadline_pass_through(backbone, model):
    model.hold()
    calls = [
        asyncio.create_task(backbone.features(ANYBODY, pb.Image(encoded=png(i)), pb.SAM))
        for i in range(12)
    ]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
    assert type(next(iter(done)).exception()) is Overloaded
    model.release()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(backbone_client.REFUSED_S)  # until requests are sent again
    model.hold()
    late = RequestContext(priority=Priority(deadline=asyncio.get_running_loop().time()))
    with pytest.raises(DeadlineExceeded):
        await backbone.features(late, pb.Image(encoded=png(99)), pb.SAM)


async def test_a_refusal_is_heeded_for_a_moment_by_what_is_no_more_urgent(backbone, monkeypatch):
    known = (await backbone.features(ANYBODY, pb.Image(encoded=png(1)), pb.SAM))[0].key
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(backbone_client, "monotonic", lambda: clock.now)
    answers: list[Exception | None] = [Overloaded("too much")]
    call, asked = backbone._call, []

    async def watched(rpc, request, context, *more):
        asked.append(request)
        if answers and (error := answers.pop()):
            raise error
        return await call(rpc, request, context, *more)

    monkeypatch.setattr(backbone, "_call", watched)

    async def ask(image, left_s=5.0, bulk=False):
        context = RequestContext(priority=Priority(clock.now + left_s, bulk))
        await backbone.features(context, image, pb.SAM)

    with pytest.raises(Overloaded, match="too much"):
        await ask(pb.Image(encoded=png(2)))
    before = shown(metrics.SHED.labels("busy"))
    with pytest.raises(Overloaded, match="try again later"):
        await ask(pb.Image(encoded=png(3)))
    with pytest.raises(Overloaded, match="try again later"):
        await ask(pb.Image(encoded=png(3)), bulk=True, left_s=1)
    assert (len(asked), shown(metrics.SHED.labels("busy"))) == (1, before + 2)
    await ask(pb.Image(encoded=png(3)), left_s=6)
    await ask(pb.Image(key=known))
    clock.now += backbone_client.REFUSED_S
    await ask(pb.Image(encoded=png(4)))
    assert len(asked) == 4


async def test_a_refusal_holds_for_no_other_tenant_no_interactive_work_and_no_lack_of_time():
    refusal = backbone_client._Refusal()
    ann = Priority(bulk=True, tenant="ann")
    with pytest.raises(Overloaded), refusal.applied(ann):
        raise Overloaded("for bulk work there is no room")
    for priority in (Priority(tenant="ann"), Priority(bulk=True, tenant="bob")):
        with refusal.applied(priority):
            pass
    late = Priority(deadline=time.monotonic(), tenant="ann")
    for error, priority in ((Overloaded, ann), (DeadlineExceeded, late)):
        with pytest.raises(error), refusal.applied(priority):
            pytest.fail("it was asked")


async def test_an_image_that_was_refused_with_its_texts_refuses_no_other():
    refusal = backbone_client._Refusal()
    with pytest.raises(Overloaded), refusal.applied(Priority(), alone=False):
        raise Overloaded("the texts take too long")
    with refusal.applied(Priority()):
        pass


async def test_a_backbone_that_is_not_there_is_unavailable():
    client = client_of(1, "d")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 does not answer"):
        await client.features(ANYBODY, pb.Image(key="k"), pb.SAM)
    await client.close()


async def test_embeddings_of_another_checkpoint_are_refused(model, settings):
    async with served(Backbone(settings, model)) as port:
        client = client_of(port, "e" * 64)
        with pytest.raises(AnotherCheckpoint, match="another checkpoint"):
            await client.features(ANYBODY, pb.Image(encoded=png(1)), pb.SAM)
        with pytest.raises(AnotherCheckpoint, match="another checkpoint"):
            await client.embed_text(ANYBODY, ["dog"])
        await client.close()


async def test_texts_are_asked_for_once(backbone, model):
    rows = await backbone.embed_text(ANYBODY, ["dog", "cat", "dog"])
    np.testing.assert_allclose(rows, [text_vector(t) for t in ("dog", "cat", "dog")], atol=1e-6)
    assert model.texts == ["dog", "cat"]
    await backbone.embed_text(ANYBODY, ["cat", "bird"])
    assert model.texts == ["dog", "cat", "bird"]
    assert all(row.base is None for row in backbone._texts.values())  # no views of a response


async def test_new_texts_go_with_a_new_image(backbone, model):
    await backbone.embed_text(ANYBODY, ["dog"])
    image, texts = pb.Image(encoded=png(100)), lambda: ["dog", "cat", "cat"]
    await backbone.features(ANYBODY, image, pb.CLIP_POOLED, texts=texts)
    rows = await backbone.embed_text(ANYBODY, texts())
    assert model.texts == ["dog", "cat"]
    np.testing.assert_allclose(rows, [text_vector(text) for text in texts()], atol=1e-6)


async def test_more_new_texts_than_are_kept_are_embedded_once(model, settings, monkeypatch):
    monkeypatch.setattr(backbone_client, "TEXTS_KEPT", 10)
    monkeypatch.setattr(backbone_client, "TEXTS_AT_ONCE", 4)
    labels = [f"label {n}" for n in range(25)]
    async with served(Backbone(settings, model)) as port:
        client = client_of(port, model.digest)
        model.texts.clear()
        image = pb.Image(encoded=png(100))
        await client.features(ANYBODY, image, pb.CLIP_POOLED, texts=lambda: labels)
        await client.class_embeddings(ANYBODY, labels, ["{}"])
        await client.close()
    assert sorted(model.texts) == sorted(labels)


async def test_texts_of_several_images_that_are_sent_at_once_go_with_one(backbone, model):
    calls = (
        backbone.features(
            ANYBODY, pb.Image(encoded=png(red)), pb.CLIP_POOLED, texts=lambda: ["dog"]
        )
        for red in range(2)
    )
    await asyncio.gather(*calls)
    assert model.texts == ["dog"]


@pytest.fixture
def in_redis(model, settings, shared_redis):
    """Return a backbone that shares a Redis with the caches of heads."""
    shared = {"redis_url": shared_redis.url, "redis_timeout_ms": 60_000}
    settings = settings.model_copy(update=shared)
    return Backbone(settings, model), embedding_cache.of_settings(
        settings, MemoryTier(0), model.digest, SIZE
    )


async def test_what_the_backbone_keeps_in_redis_costs_no_hop(model, in_redis):
    backbone, caches = in_redis
    image, outputs = pb.Image(encoded=png(77)), (pb.SAM, pb.CLIP_POOLED)
    async with served(backbone) as port:
        near = client_of(port, model.digest)
        info, features = await near.features(ANYBODY, image, *outputs)
        await near.close()
        far = BackboneClient(peer(port), SIZE, model.digest, caches, MAX_BYTES)
        await far.embed_text(ANYBODY, ["a photo"])  # the answer states the backbone's precision
    await backbone.embedder.close()  # only its entries in Redis remain
    for again in (image, pb.Image(key=info.key)):
        found, same = await far.features(ANYBODY, again, *outputs)
        assert found == pb.ImageInfo(key=info.key, width=40, height=30, cached=True)
        np.testing.assert_array_equal(same.sam_Dhw, features.sam_Dhw)
        np.testing.assert_array_equal(same.clip_pooled_D, features.clip_pooled_D)
    with pytest.raises(Unavailable):
        await far.features(ANYBODY, pb.Image(encoded=png(78)), *outputs)
    await far.close()


async def test_until_the_backbone_has_named_its_precision_redis_is_not_asked(model):
    asked = []

    def caches(dtype: str) -> EmbeddingCache:
        asked.append(dtype)
        return EmbeddingCache(MemoryTier(2**20))

    client = BackboneClient(peer(1), SIZE, model.digest, caches, MAX_BYTES)
    client.cache.get = None
    with pytest.raises(Unavailable):
        await client.features(ANYBODY, pb.Image(encoded=png(1)), pb.SAM)
    assert asked == [""]
    await client.close()


async def test_an_image_is_hashed_and_looked_for_in_redis_once(model, in_redis, monkeypatch):
    backbone, caches = in_redis
    hashed, image = [], pb.Image(encoded=png(79))
    monkeypatch.setattr(
        threads.image, "image_key", lambda file: hashed.append(file) or image_key(file)
    )

    def looked_for() -> float:
        return shown(metrics.CACHE.labels("l2", "SAM", "miss"))

    async with served(backbone) as port:
        client = BackboneClient(peer(port), SIZE, model.digest, caches, MAX_BYTES)
        await client.embed_text(ANYBODY, ["a photo"])  # the answer states the backbone's precision
        before = looked_for()
        info, _ = await client.features(ANYBODY, image, pb.SAM)
        assert (info.key, info.cached) == (image_key(image.encoded), False)
        assert (len(hashed), looked_for() - before) == (1, 1)
        await client.close()
        far = BackboneClient(peer(port, ()), SIZE, model.digest, caches, MAX_BYTES)
        far._peer.metadata = ADMITTED  # a front door admits it, but removes the key's header
        await far.embed_text(ANYBODY, ["a photo"])
        assert (await far.features(ANYBODY, pb.Image(encoded=png(80)), pb.SAM))[0].key == image_key(
            png(80)
        )
        assert len(hashed) == 3
        await far.close()
    await backbone.embedder.close()


async def test_classes_that_were_asked_about_lately_are_remembered(backbone, model):
    templates = ["a {}", "the {}"]
    first = await backbone.class_embeddings(ANYBODY, ["dog", "cat"], templates)
    mean = text_vector("a cat") + text_vector("the cat")
    np.testing.assert_allclose(first[1], mean / np.linalg.norm(mean), atol=1e-6)
    backbone._texts.clear()
    assert await backbone.class_embeddings(ANYBODY, ["dog", "cat"], templates) is first
    for number in range(backbone_client.CLASSES_KEPT):
        await backbone.class_embeddings(ANYBODY, [f"dog {number}"], ["a {}"])
    again = await backbone.class_embeddings(ANYBODY, ["dog", "cat"], templates)
    assert again is not first
    np.testing.assert_allclose(again, first, atol=1e-6)


@pytest.fixture
async def two_graphs(settings):
    """Return the ports of two backbones with the same weights, whose graphs differ."""
    first, second = FakeModel(), FakeModel()
    first.graphs, second.graphs = "1" * 64, "2" * 64
    second.embed_text = lambda texts: -np.stack([text_vector(text) for text in texts])
    one, two = Backbone(settings, first), Backbone(settings, second)
    async with served(one) as port, served(two) as other:
        yield port, other
    for backbone in (one, two):
        await backbone.embedder.close()


async def test_embeddings_of_other_graphs_are_refused(two_graphs, model):
    for port, theirs in zip(two_graphs, "12", strict=True):
        for ours in ("", "1", "2"):  # a head without graphs takes those of the backbone
            client = client_of(port, model.digest + ours * 64)
            if ours in ("", theirs):
                await client.embed_text(ANYBODY, ["a dog"])
                await client.features(ANYBODY, pb.Image(encoded=png(1)), pb.SAM)
                assert client.graphs == theirs * 64
            else:
                with pytest.raises(AnotherCheckpoint, match="with graphs"):
                    await client.embed_text(ANYBODY, ["a dog"])
            await client.close()


async def test_torch_answers_a_head_that_has_graphs(backbone, model):
    assert model.graphs == ""
    client = client_of(int(backbone._peer.address.rpartition(":")[2]), model.digest + "1" * 64)
    await client.features(ANYBODY, pb.Image(encoded=png(1)), pb.SAM)
    assert client.graphs == ""
    await client.close()


async def test_vectors_of_other_graphs_are_not_mixed(two_graphs, model):
    """Both backbones act as replicas behind one address, for a head without graphs."""
    contracts = []

    def caches(computed: str) -> EmbeddingCache:
        contracts.append(computed)
        return EmbeddingCache(MemoryTier(2**20))

    client, other = (
        BackboneClient(peer(port), SIZE, model.digest, caches, MAX_BYTES) for port in two_graphs
    )
    first = await client.class_embeddings(ANYBODY, ["dog", "cat"], ["a {}"])
    await client.features(ANYBODY, pb.Image(encoded=png(1)), pb.SAM)
    first_peer, client._peer = client._peer, other._peer
    rows = await client.embed_text(ANYBODY, ["a dog", "a cat", "a cow"])  # two are known
    expected = np.stack([text_vector(text) for text in ("a dog", "a cat", "a cow")])
    np.testing.assert_allclose(rows, -expected, atol=1e-6)
    assert not (await client.features(ANYBODY, pb.Image(encoded=png(1)), pb.CLIP_DENSE))[0].cached
    client._peer = None  # from what is cached
    again = await client.class_embeddings(ANYBODY, ["dog", "cat"], ["a {}"])
    np.testing.assert_allclose(again, -first, atol=1e-6)
    assert contracts[-2:] == [f"float32:{'1' * 64}", f"float32:{'2' * 64}"]
    client._peer = first_peer
    for each in (client, other):
        await each.close()


@pytest.fixture
async def two_precisions(backbone, settings):
    """Return a client of a backbone in float32, and the peer that is a backbone in int8."""
    other = FakeModel()
    other.dtype = "int8"
    async with served(Backbone(settings, other)) as port:
        elsewhere = client_of(port, other.digest)
        backbone._caches = lambda dtype: EmbeddingCache(MemoryTier(2**20))
        yield backbone, elsewhere._peer
        await elsewhere.close()


async def test_entries_of_another_precision_are_served_no_more(two_precisions):
    """Both backbones act as replicas behind one address."""
    client, int8 = two_precisions
    float32, image = client._peer, pb.Image(encoded=png(100))

    async def dtype(peer: Peer | None, *outputs: pb.Output) -> str:
        client._peer = peer
        return (await client.features(ANYBODY, image, *outputs))[1].dtype

    assert await dtype(float32, pb.SAM) == "float32"
    assert await dtype(int8, pb.SAM) == "float32"  # from memory
    assert await dtype(int8, pb.SAM, pb.CLIP_DENSE) == "int8"
    assert await dtype(None, pb.SAM) == "int8"  # from memory, without a backbone
    assert await dtype(float32, pb.CLIP_POOLED) == "float32"
    assert await dtype(int8, pb.SAM) == "int8"  # the earlier entry has been dropped


async def test_what_was_found_before_the_precision_changed_keeps_its_own(two_precisions):
    client, int8 = two_precisions
    image = pb.Image(encoded=png(100))
    await client.features(ANYBODY, image, pb.SAM)
    get = client.cache.get

    async def overtaken(key, outputs, priority):
        found = await get(key, outputs, priority)
        client._peer = int8
        await client.embed_text(ANYBODY, ["a dog"])
        return found

    client.cache.get = overtaken
    assert (await client.features(ANYBODY, image, pb.SAM))[1].dtype == "float32"
    assert client._dtype == "int8"


async def test_deadline_and_priority_are_passed_on(backbone, monkeypatch):
    seen = []
    run = Backbone.run

    def run_and_see(self, method, request, context):
        seen.append(context.priority)
        return run(self, method, request, context)

    monkeypatch.setattr(Backbone, "run", run_and_see)
    sent = RequestContext(priority=Priority(asyncio.get_running_loop().time() + 500, bulk=True))
    await backbone.features(sent, pb.Image(encoded=png(1)), pb.SAM)
    assert seen[0].bulk
    assert seen[0].deadline <= sent.priority.deadline + 1


def tenant_called(name: str) -> RequestContext:
    headers = {KEY: name, TENANT: name, SCOPES: "read"}
    return RequestContext(caller=Caller.read(headers, keys_asked_for=True))


async def test_what_one_tenant_has_sent_another_one_has_to_send_as_well(backbone, model):
    ann, bob = tenant_called("ann"), tenant_called("bob")
    image = pb.Image(encoded=png(100))
    info, _ = await backbone.features(ann, image, pb.CLIP_POOLED)
    with pytest.raises(KeyUnknown, match="send the image"):
        await backbone.features(bob, pb.Image(key=info.key), pb.CLIP_POOLED)
    sent, _ = await backbone.features(bob, image, pb.CLIP_POOLED)
    assert not sent.cached  # otherwise it would reveal another tenant's upload
    for tenant in (ann, bob):
        by_key, _ = await backbone.features(tenant, pb.Image(key=info.key), pb.CLIP_POOLED)
        assert by_key.cached
    assert model.batches == [1, 1]


async def test_texts_are_asked_some_at_a_time_and_kept_where_the_time_ends(
    model, settings, monkeypatch
):
    monkeypatch.setattr(backbone_client, "TEXTS_AT_ONCE", 2)
    async with served(Backbone(settings, model)) as port:
        client = client_of(port, model.digest)
        call, sizes = client._call, []

        async def too_late(rpc, request, context, *more):
            sizes.append(len(request.texts))
            if len(sizes) == 2:
                raise DeadlineExceeded("too late")
            return await call(rpc, request, context, *more)

        monkeypatch.setattr(client, "_call", too_late)
        with pytest.raises(DeadlineExceeded):
            await client.embed_text(ANYBODY, [*"abcde"])
        found_TD = await client.embed_text(ANYBODY, [*"abcde"])
        assert sizes == [2, 2, 2, 1]
        np.testing.assert_allclose(found_TD, [text_vector(text) for text in "abcde"], atol=1e-6)
        await client.close()


@pytest.mark.parametrize("tenant", ["ann", "-"])
async def test_a_backbone_elsewhere_is_not_asked_by_key_for_a_tenant(model, settings, tenant):
    async with served(Backbone(settings, model)) as port:
        caches = lambda dtype: EmbeddingCache(MemoryTier(0))  # noqa: E731
        client = BackboneClient(peer(port, ()), SIZE, model.digest, caches, MAX_BYTES)
        with pytest.raises(KeyUnknown):
            await client.features(tenant_called(tenant), pb.Image(key="0" * 64), pb.CLIP_POOLED)
        await client.close()
    assert shown(metrics.REQUESTS.labels("BackboneService", "Embed", "UNAUTHENTICATED")) == 0


async def test_a_backbone_elsewhere_is_reached_with_tls_and_a_key(model, settings, tmp_path):
    certificate = tls.certificate(tmp_path, "localhost")
    pair = (certificate.read_bytes(), certificate.read_bytes())
    server = grpc.aio.server(options=UNLIMITED)
    seen = []

    class Backbone(BackboneServiceServicer):
        async def EmbedText(self, request, context):
            seen.append(dict(context.invocation_metadata()).get("x-api-key"))
            tensor = wire.to_tensor(np.ones((1, 4), np.float32))
            return pb.EmbedTextResponse(tensor=tensor, model=pb.ModelInfo(digest=model.digest))

    add_BackboneServiceServicer_to_server(Backbone(), server)
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    far = {"backbone_address": f"localhost:{port}", "backbone_api_key": "k"}
    for ca in (certificate, tls.certificate(tmp_path, "stranger"), None):
        update = {**far, "backbone_ca_file": ca}
        head = HeadService(settings.model_copy(update=update))
        client = head.backbone
        client._identity = model.digest
        if ca is certificate:
            assert (await client.embed_text(ANYBODY, ["a"])).shape == (1, 4)
        else:
            soon = RequestContext(priority=Priority(time.monotonic() + 0.5))  # limits the retries
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await client.embed_text(soon, ["a"])
        await client.close()
    assert seen == ["k"]
    await server.stop(None)


async def test_a_connection_that_falls_silent_is_given_up_for_another(model, settings, monkeypatch):
    """Without keep-alive, TCP would wait for minutes; the calls have no deadline."""
    quick = tuple((name, min(value, 500)) for name, value in calls._NETWORK)
    monkeypatch.setattr(calls, "_NETWORK", quick)
    async with served(Backbone(settings, model)) as port:
        with relay.running(port) as between:
            client = client_of(between.port, model.digest)
            await client.features(ANYBODY, pb.Image(encoded=png(100)), pb.SAM)
            between.silence()
            info, _ = await client.features(ANYBODY, pb.Image(encoded=png(101)), pb.SAM)
            assert info.key == image_key(png(101))
            between.cut()
            with pytest.raises(Unavailable, match="does not answer"):
                await client.features(ANYBODY, pb.Image(encoded=png(102)), pb.SAM)
            between.mend()
            assert (await client.features(ANYBODY, pb.Image(encoded=png(103)), pb.SAM))[
                0
            ].width == 40
            await client.close()


async def test_texts_that_the_checkpoint_has_are_never_asked_for(backbone, model):
    backbone.know({"a dog": text_vector("cow")})
    await backbone.features(
        ANYBODY, pb.Image(encoded=png(1)), pb.CLIP_POOLED, texts=lambda: ["a dog", "a cat"]
    )
    rows = await backbone.class_embeddings(ANYBODY, ["dog", "cat"], ["a {}"])
    expected = [text_vector("cow"), text_vector("a cat")]
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert model.texts == ["a cat"]


async def test_texts_of_the_checkpoint_stay_known_beside_other_graphs(two_graphs, model):
    client, other = (client_of(port, model.digest) for port in two_graphs)
    client.know({"a dog": text_vector("cow")})
    await client.embed_text(ANYBODY, ["a cat"])
    client._peer, mine = other._peer, client._peer
    await client.embed_text(ANYBODY, ["a bird"])  # by other graphs, so that "a cat" is forgotten
    rows = await client.embed_text(ANYBODY, ["a dog", "a cat"])
    expected = [text_vector("cow"), -text_vector("a cat")]
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    client._peer = mine
    for each in (client, other):
        await each.close()


async def test_texts_of_the_checkpoint_make_room_for_no_others(backbone, model, monkeypatch):
    monkeypatch.setattr(backbone_client, "TEXTS_KEPT", 2)
    backbone.know({"a dog": text_vector("cow")})
    await backbone.embed_text(ANYBODY, ["one", "two", "three"])
    model.texts.clear()
    await backbone.embed_text(ANYBODY, ["a dog", "new"])
    assert model.texts == ["new"]
