"""A head knows its checkpoint and reaches its backbone."""

import pytest

from samclip_core.errors import CheckpointError
from services.gateway import scrape
from services.heads.classification.app import Classification
from services.heads.head import HeadService
from services.observability import metrics
from services.request import calls
from tests.in_process import SECRET


def test_it_knows_the_model_without_reading_weights(settings, tiny_model):
    head = Classification(settings)
    assert (head.model.name, head.model.kind) == ("tiny-edge", "edge")
    assert head.model.digest == tiny_model.digest
    assert head.config == tiny_model.config


def test_it_tells_what_was_measured_of_a_checkpoint(settings):
    head = Classification(settings.model_copy(update={"checkpoint": "edge"}))
    assert 0 < head.figures["imagen200_top1"] <= 1
    metrics.announce(head.model, head.figures)
    line = f'samclip_model_quality{{digest="{head.model.digest}",measure="imagen200_top1"}} 0.'
    assert line in scrape.render({"": scrape.of_node()}).decode()


def test_a_missing_checkpoint_says_how_to_get_one(settings):
    with pytest.raises(CheckpointError, match="samclip convert"):
        HeadService(settings.model_copy(update={"checkpoint": "nowhere"}))


@pytest.mark.parametrize(
    ("given", "address", "metadata"),
    [
        ({}, "127.0.0.1:4321", {"application": "backbone", calls.SECRET_HEADER: SECRET}),
        ({"backbone_address": "far:9000"}, "far:9000", {}),
        ({"backbone_address": "far:9000", "backbone_api_key": "k"}, "far:9000", {"x-api-key": "k"}),
    ],
)
async def test_its_own_backbone_is_called_past_the_front_door_and_another_gets_no_secret(
    settings, given, address, metadata
):
    settings = settings.model_copy(update={"inner_grpc_port": 4321, **given})
    peer = Classification(settings).backbone._peer
    assert (peer.address, dict(peer.metadata)) == (address, metadata)
    assert ("backbone" in calls.applications(settings)) == (not given)


async def test_health_tells_the_model_and_of_redis(settings, tiny_model, shared_redis):
    health = await Classification(settings).health()
    assert (health["model"]["digest"], health["redis"]) == (tiny_model.digest, "off")
    shared = {"redis_url": shared_redis.url, "redis_timeout_ms": 60_000}
    for address, state in (("", "up"), ("far:9000", "off")):
        update = {**shared, "backbone_address": address}
        head = Classification(settings.model_copy(update=update))
        assert (await head.health())["redis"] == state
        await head.backbone.close()
    head = Classification(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    assert (await head.health())["redis"] == "down"
    await head.backbone.close()
