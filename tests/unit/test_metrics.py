import os
import subprocess
import sys

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


def test_the_model_is_announced():
    metrics.announce(pb.ModelInfo(name="edge", digest="abc", kind="edge"))
    line = 'samclip_model_info{digest="abc",kind="edge",name="edge"} 1.0'
    assert line in metrics.render().decode()


def test_resident_memory_is_that_of_a_python_with_torch():
    assert 20 * 2**20 < metrics.resident_bytes() < 2**40


WRITER = """
from services import metrics
metrics.REQUESTS.labels("S", "R", "OK").inc(2)
metrics.CACHE_BYTES.labels("l1").set(10)
"""
READER = """
import os
from services import metrics
metrics.REQUESTS.labels("S", "R", "OK").inc(3)
metrics.CACHE_BYTES.labels("l1").set(7)
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
