from types import SimpleNamespace

import pytest
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError

from samclip_core.errors import CheckpointError
from training import workers

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("cores", "readers"), [(1, 0), (2, 1), (8, 7), (64, workers.MOST_READERS)])
def test_a_gpus_worker_reads_with_the_cores_that_it_leaves_idle(
    cores: int, readers: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers.os, "cpu_count", lambda: cores)
    assert workers.readers(GPU) == readers
    assert workers.readers(CPU) == 0


def test_workers_share_the_cores_that_ray_counts_on_their_machine(monkeypatch: pytest.MonkeyPatch):
    nodes = [
        {"NodeID": "head", "Resources": {}},
        {"NodeID": "here", "Resources": {"CPU": 32.0, "GPU": 4.0}},
    ]
    here = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    for local, readers in ((4, 7), (8, 3), (40, 0)):
        context = SimpleNamespace(get_local_world_size=lambda local=local: local)
        monkeypatch.setattr(ray.train, "get_context", lambda context=context: context)
        assert workers.readers(GPU) == readers


LOST = (RayActorError(), RuntimeError("Connection closed by peer"), ConnectionError(), OSError())


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("sam"),
        ValueError("set"),
        FileNotFoundError("sam"),
        CheckpointError("sam"),
    ],
)
def test_an_error_that_would_come_again_is_raised_whatever_else_failed(error: Exception):
    with pytest.raises(type(error)) as raised:
        workers.EndOnFinalErrors().after_exception(None, {0: LOST[1], 3: error})
    assert raised.value is error


def test_lost_workers_are_left_to_ray():
    workers.EndOnFinalErrors().after_exception(None, dict(enumerate(LOST)))
