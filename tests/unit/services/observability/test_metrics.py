from itertools import pairwise

import pytest
from samclip.v1 import samclip_pb2 as pb

from services.gateway import scrape
from services.observability import metrics

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


@pytest.mark.parametrize("name", NAMES)
def test_the_published_names_are_there_and_only_ours(name):
    text = rendered()
    assert f"# TYPE {name} " in text
    assert all(
        line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("samclip_")
        for line in text.splitlines()
    )


@pytest.mark.parametrize("stage", metrics.STAGES)
def test_every_stage_is_there_from_the_start(stage):
    assert f'samclip_stage_seconds_count{{stage="{stage}"}}' in rendered()


def test_a_stage_counts_also_what_fails_in_it():
    histogram = metrics.STAGE_SECONDS.labels("decode")
    before = histogram._sum.get()
    with pytest.raises(ValueError, match="x"), metrics.stage("decode"):
        raise ValueError("x")
    assert histogram._sum.get() > before


def test_the_model_is_announced_with_what_was_measured_of_it():
    metrics.announce(pb.ModelInfo(name="edge", digest="abc", kind="edge"), {"box_miou": 0.5})
    text = rendered()
    assert 'samclip_model_info{digest="abc",kind="edge",name="edge"} 1.0' in text
    assert 'samclip_model_quality{digest="abc",measure="box_miou"} 0.5' in text


@pytest.mark.parametrize("reason", metrics.SHED_REASONS)
def test_what_is_shed_begins_at_nothing(reason):
    assert f'samclip_shed_total{{reason="{reason}"}}' in rendered()


def test_buckets_are_from_half_a_millisecond_to_what_no_request_takes():
    bounds = metrics.REQUEST_SECONDS.labels("S", "R")._upper_bounds
    assert bounds[0] == 0.0005
    assert {30, 60} <= set(bounds)
    assert all(2 <= after / before <= 3 for before, after in pairwise(bounds[:-1]))


def test_memory_of_a_model_on_a_cpu_is_that_of_its_process():
    metrics.measure_memory("cpu")
    assert metrics.DEVICE_MEMORY._value.get() > 20 * 2**20


def test_a_retired_checkpoint_is_not_shown():
    model = pb.ModelInfo(name="edge", digest="def", kind="edge")
    metrics.announce(model)
    assert 'digest="def"' in rendered()
    metrics.retire(model)
    assert 'digest="def"' not in rendered()


def test_resident_memory_is_that_of_a_python_with_torch():
    assert 20 * 2**20 < metrics.resident_bytes() < 2**40
