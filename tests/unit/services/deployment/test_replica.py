from services.deployment import replica
from services.heads.classification.app import Classification
from services.observability import metrics
from services.request.arrival import MAX_ARRIVING
from services.settings import Settings


def options(device: str) -> dict:
    built = replica.of(Classification, Settings(device=device), gpus=0.25)
    return built._bound_deployment.ray_actor_options


def test_cpus_are_shared_and_a_gpu_is_asked_for_only_where_there_is_one():
    assert (options("cpu")["num_cpus"], options("cpu")["num_gpus"]) == (0, 0)
    assert options("cuda")["num_gpus"] == 0.25


def test_queues_are_bounded_and_a_full_one_is_429():
    built = replica.of(Classification, Settings())._bound_deployment
    assert built.max_queued_requests == replica.MAX_QUEUED
    assert built.backpressure_config.status_code == 429


def test_bodies_that_arrive_have_places_of_their_own():
    built = replica.of(Classification, Settings())._bound_deployment
    assert built.max_ongoing_requests == replica.MAX_ONGOING + MAX_ARRIVING


def test_what_every_service_can_change_while_it_runs_is_its_user_config():
    built = replica.of(Classification, Settings(log_level="INFO"))._bound_deployment
    assert built.user_config == {"checkpoint": "edge", "log_level": "INFO"}


def test_a_replica_reserves_the_cpus_of_the_settings():
    built = replica.of(Classification, Settings(replica_cpus=2))._bound_deployment
    assert built.ray_actor_options["num_cpus"] == 2


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
