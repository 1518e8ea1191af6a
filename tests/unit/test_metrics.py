import os
import subprocess
import sys
from itertools import pairwise

import pytest
from samclip.v1 import samclip_pb2 as pb

from services import metrics

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
    "samclip_ready",
    "samclip_model_quality",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_published_names_are_there_and_only_ours(name):
    text = metrics.render().decode()
    assert f"# TYPE {name} " in text
    assert all(
        line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("samclip_")
        for line in text.splitlines()
    )


@pytest.mark.parametrize("stage", metrics.STAGES)
def test_every_stage_is_there_from_the_start(stage):
    assert f'samclip_stage_seconds_count{{stage="{stage}"}}' in metrics.render().decode()


def test_a_stage_counts_also_what_fails_in_it():
    histogram = metrics.STAGE_SECONDS.labels("decode")
    before = histogram._sum.get()
    with pytest.raises(ValueError, match="x"), metrics.stage("decode"):
        raise ValueError("x")
    assert histogram._sum.get() > before


def test_the_model_is_announced_with_what_was_measured_of_it():
    metrics.announce(pb.ModelInfo(name="edge", digest="abc", kind="edge"), {"box_miou": 0.5})
    text = metrics.render().decode()
    assert 'samclip_model_info{digest="abc",kind="edge",name="edge"} 1.0' in text
    assert 'samclip_model_quality{digest="abc",measure="box_miou"} 0.5' in text


@pytest.mark.parametrize("reason", ["queue_full", "expired", "deadline", "abandoned", "cancelled"])
def test_what_is_shed_begins_at_nothing(reason):
    assert f'samclip_shed_total{{reason="{reason}"}}' in metrics.render().decode()


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
    assert 'digest="def"' in metrics.render().decode()
    metrics.retire(model)
    assert 'digest="def"' not in metrics.render().decode()


def test_resident_memory_is_that_of_a_python_with_torch():
    assert 20 * 2**20 < metrics.resident_bytes() < 2**40


WRITER = """
from samclip.v1 import samclip_pb2 as pb
from services import metrics
metrics.REQUESTS.labels("S", "R", "OK").inc(2)
metrics.CACHE_BYTES.labels("l1").set(10)
metrics.REDIS_UP.labels("read").set(0)
metrics.READY.labels("backbone").set(0)
metrics.announce(pb.ModelInfo(digest="old"))
"""
READER = """
import os
from services import metrics
metrics.REQUESTS.labels("S", "R", "OK").inc(3)
metrics.CACHE_BYTES.labels("l1").set(7)
metrics.REDIS_UP.labels("read").set(1)
print(metrics.render().decode())
"""


def test_replicas_of_one_node_are_added_up_and_dead_ones_keep_only_their_counters(tmp_path):
    environment = os.environ | {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for program in (WRITER, READER):
        output = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert 'samclip_requests_total{code="OK",rpc="R",service="S"} 5.0' in output
    assert 'samclip_cache_bytes{tier="l1"} 7.0' in output
    assert 'samclip_redis_up{access="read"} 1.0' in output
    assert "old" not in output
    assert 'application="backbone"' not in output
