"""The published metrics are there from the start, and are ours alone."""

import pytest
from samclip.v1 import samclip_pb2 as pb

from services.gateway import scrape
from services.observability import metrics
from tests.shown import shown

NAMES = [
    "samclip_requests_total",
    "samclip_request_seconds",
    "samclip_stage_seconds",
    "samclip_batch_size",
    "samclip_batch_release_total",
    "samclip_cache_total",
    "samclip_cache_bytes",
    "samclip_shed_total",
    "samclip_inflight",
    "samclip_model_info",
    "samclip_device_memory_bytes",
    "samclip_queue",
    "samclip_redis_up",
    "samclip_model_quality",
]


def rendered() -> str:
    return scrape.render({"": scrape.of_node()}).decode()


def test_the_published_names_are_there_and_only_ours():
    lines = rendered().splitlines()
    types = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    assert set(NAMES) <= types
    for line in lines:
        assert line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("samclip_")


def test_every_stage_and_reason_is_there_before_its_first_event():
    text = rendered()
    for stage in metrics.STAGES:
        assert f'samclip_stage_seconds_count{{stage="{stage}"}}' in text
    for reason in metrics.SHED_REASONS:
        assert f'samclip_shed_total{{reason="{reason}"}}' in text


def test_a_stage_counts_also_what_fails_in_it():
    histogram = metrics.STAGE_SECONDS.labels("decode")
    before = shown(histogram)
    with pytest.raises(ValueError, match="x"), metrics.stage("decode"):
        raise ValueError("x")
    assert shown(histogram) > before


def test_the_model_is_announced_with_what_was_measured_of_it():
    metrics.announce(pb.ModelInfo(name="edge", digest="abc", kind="edge"), {"box_miou": 0.5})
    text = rendered()
    assert 'samclip_model_info{digest="abc",kind="edge",name="edge"} 1.0' in text
    assert 'samclip_model_quality{digest="abc",measure="box_miou"} 0.5' in text


def test_a_retired_checkpoint_is_not_shown():
    model = pb.ModelInfo(name="edge", digest="def", kind="edge")
    metrics.announce(model)
    assert 'digest="def"' in rendered()
    metrics.retire(model)
    assert 'digest="def"' not in rendered()
