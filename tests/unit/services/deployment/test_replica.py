"""A service is deployed with the CPUs, the GPU and the bounded queues of its settings."""

from services.deployment import replica
from services.heads.classification.app import Classification
from services.observability import metrics
from services.request.transit import MAX_AT_ONCE
from services.settings import Settings


def built(**values):
    return replica.deploy(Classification, Settings(**values), gpus=0.25)._bound_deployment


def test_cpus_are_those_of_the_settings_and_a_gpu_is_asked_for_only_where_there_is_one():
    for values, cpus, gpus in (
        ({}, 0, 0),
        ({"device": "cuda"}, 0, 0.25),
        ({"replica_cpus": 2}, 2, 0),
    ):
        options = built(**values).ray_actor_options
        assert (options["num_cpus"], options["num_gpus"]) == (cpus, gpus)


def test_queues_are_bounded_and_a_full_one_is_429():
    made = built()
    assert made.max_queued_requests == replica.MAX_QUEUED
    assert made.backpressure_config.status_code == 429
    assert made.max_ongoing_requests == replica.MAX_ONGOING + MAX_AT_ONCE


def test_what_every_service_can_change_while_it_runs_is_its_user_config():
    of_models = {"checkpoint": "edge", "models": (), "model_idle_s": 0, "max_models_bytes": 0}
    assert built(log_level="INFO").user_config == {**of_models, "log_level": "INFO"}


def test_only_the_latest_precision_of_a_part_is_published():
    for dtype in ("float32", "bfloat16"):
        metrics.announce_engine("mask_decoder", "openvino", dtype)
    values = {
        sample.labels["dtype"]: sample.value
        for metric in metrics.ENGINE_INFO.collect()
        for sample in metric.samples
        if sample.labels["part"] == "mask_decoder"
    }
    assert (values["float32"], values["bfloat16"]) == (0, 1)
