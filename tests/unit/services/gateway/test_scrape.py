"""The combined metrics of all replicas."""

import os
import subprocess
import sys

from services.gateway import scrape
from services.observability import metrics

WRITER = """
from samclip.v1 import samclip_pb2 as pb
from services.observability import metrics
metrics.REQUESTS.labels("S", "R", "OK").inc(2)
metrics.CACHE_BYTES.labels("l1").set(10)
metrics.REDIS_UP.labels("read").set(0)
metrics.announce(pb.ModelInfo(digest="old"))
"""
READER = """
from services.gateway import scrape
from services.observability import metrics
metrics.REQUESTS.labels("S", "R", "OK").inc(3)
metrics.CACHE_BYTES.labels("l1").set(7)
metrics.REDIS_UP.labels("read").set(1)
print(scrape.render({"": scrape.of_node()}).decode())
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


def test_a_sample_says_of_which_of_several_nodes_it_is():
    metrics.REQUESTS.labels("S", "R", "OK").inc()
    found = scrape.of_node()
    ready = metrics.ready({"backbone": True})
    text = scrape.render({"10.0.0.1": found, "10.0.0.2": found}, ready).decode()
    for node in ("10.0.0.1", "10.0.0.2"):
        assert f'samclip_requests_total{{code="OK",node="{node}",rpc="R",service="S"}}' in text
    assert 'samclip_ready{application="backbone"} 1.0' in text
    assert text.count("# TYPE samclip_requests_total ") == 1
    assert "node=" not in scrape.render({"10.0.0.1": found}, ready).decode()
