"""The backbone's rpcs, its health, and the settings that it refuses."""

import json

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from services.backbone import app
from services.deployment import replica
from services.request import wire
from services.settings import SettingsError
from tests.in_process import png

NAMES = ["SAM", "CLIP_DENSE", "CLIP_POOLED"]


async def test_all_outputs_come_by_default_with_their_shapes(caller, tiny_model):
    response = await caller("Embed", pb.EmbedRequest(image=pb.Image(encoded=png()), inline=True))
    assert [tensor.name for tensor in response.tensors] == NAMES
    assert response.model == pb.ModelInfo(
        name="tiny-edge",
        digest=tiny_model.digest,
        kind="edge",
        dtype="float32",
        image_size=tiny_model.config.image_size,
    )
    assert (response.image.width, response.image.height) == (40, 30)
    features = tiny_model.encode(png())
    for tensor in response.tensors:
        expected = features.output(tensor.name)
        np.testing.assert_allclose(wire.from_tensor(tensor), expected, atol=2e-3, rtol=2e-3)


async def test_without_inline_there_are_shapes_and_no_data(caller):
    request = pb.EmbedRequest(image=pb.Image(encoded=png()), outputs=[pb.CLIP_POOLED])
    first = await caller("Embed", request)
    (tensor,) = first.tensors
    assert (list(tensor.shape), tensor.data) == ([32], b"")
    assert not first.cached
    assert (await caller("Embed", request)).cached


async def test_texts_become_rows_of_length_one(caller, tiny_model):
    response = await caller("EmbedText", pb.EmbedTextRequest(texts=["a dog", "a cat"]))
    rows = wire.from_tensor(response.tensor)
    np.testing.assert_allclose(rows, tiny_model.embed_text(["a dog", "a cat"]), atol=1e-5)
    assert rows.dtype == np.float32


async def test_texts_beside_an_image_are_those_of_texts_alone(caller):
    image, texts = pb.Image(encoded=png()), ["a dog", "a cat"]
    both = await caller("Embed", pb.EmbedRequest(image=image, texts=texts))
    alone = await caller("EmbedText", pb.EmbedTextRequest(texts=texts))
    np.testing.assert_allclose(
        wire.from_tensor(both.texts), wire.from_tensor(alone.tensor), atol=1e-5
    )
    assert not (await caller("Embed", pb.EmbedRequest(image=image))).HasField("texts")
    bad = pb.EmbedRequest(image=image, texts=[""])
    await caller.refuses("Embed", (bad, "text 0 is empty"))


async def test_bad_requests_are_refused(caller):
    await caller.refuses("EmbedText", (pb.EmbedTextRequest(texts=["a", ""]), "text 1 is empty"))
    await caller.refuses("Embed", (pb.EmbedRequest(), "the image is empty"))


def test_a_batch_that_could_never_fill_is_a_mistake_in_the_settings(settings):
    with pytest.raises(SettingsError, match="at most 64 images may wait"):
        app.build(settings.model_copy(update={"max_batch_size": 65}))
    half = replica.MAX_ONGOING // 2
    with pytest.raises(SettingsError, match=f"choose {half} or less"):
        app.build(settings.model_copy(update={"max_batch_size": half + 1, "max_queue": 1000}))
    app.build(settings.model_copy(update={"max_batch_size": half, "max_queue": half}))


def test_serve_gets_what_can_change_as_user_config(settings):
    built = app.build(settings)._bound_deployment
    assert built.name == "backbone"
    assert built.max_ongoing_requests > replica.MAX_ONGOING > settings.max_batch_size
    assert built.user_config == {
        "checkpoint": settings.checkpoint,
        "models": (),
        "model_idle_s": 0,
        "max_models_bytes": 0,
        "log_level": "WARNING",
        "max_batch_size": 4,
        "batch_wait_ms": settings.batch_wait_ms,
        "max_prompt_batch": 8,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_batch": 2}, "user_config has max_batch; .* max_batch_size, batch_wait_ms"),
        ({"max_queue": 2}, "user_config has max_queue"),
        ({"max_batch_size": 0}, "'max_batch_size' is 0: .* greater than or equal to 1"),
        ({"batch_wait_ms": "soon"}, "'batch_wait_ms' is 'soon'"),
        ({"max_batch_size": 65}, "at most 64 images may wait"),
    ],
)
async def test_a_bad_change_is_refused_and_nothing_changes(settings, tiny_model, config, message):
    backbone = app.Backbone(settings, tiny_model)
    with pytest.raises(SettingsError, match=message):
        backbone.tune(settings.tuned(config, backbone.tunable))
    assert backbone.embedder.queue._max_size == backbone.settings.max_batch_size == 4


async def test_health_tells_of_queue_and_cache(settings, tiny_model):
    health = await app.Backbone(settings, tiny_model).health()
    assert health["queue"] == 0
    assert health["cache"] == {"bytes": 0, "capacity": settings.cache_bytes}
    assert health["redis"] == "off"
    assert health["model"]["name"] == "tiny-edge"
    assert json.loads(json.dumps(health)) == health
