"""The deployment of a service under Ray Serve, with the options that all services share."""

import logging
from typing import TYPE_CHECKING

from samclip_core.answers.sam_head import SamHead
from samclip_core.config import SamClipConfig
from samclip_core.engine import load
from samclip_core.engine.base import Engine, Network
from samclip_core.engine.settle import settle
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from services.observability import metrics
from services.request.rpc import Service
from services.request.transit import MAX_AT_ONCE
from services.settings import Settings, SettingsError

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

MAX_ONGOING = 256
"""Requests that a replica works on at once. Far more than a batch, which Serve's default of 5 would
starve: the effective limits are the encoder's queue (``max_queue``) and the wait for a slot."""
MAX_QUEUED = 256
"""Requests that may wait for a slot; others get 429 or RESOURCE_EXHAUSTED at once."""
HEALTH = {"health_check_period_s": 1, "health_check_timeout_s": 2}
"""A replica whose process has ended is replaced at once; one that hangs, after three checks without
an answer. That takes about seven seconds, compared with a hundred for Serve's defaults."""


def deploy(service: type[Service], settings: Settings, gpus: float = 0.0) -> "Application":
    """Deploy one replica of a service. ``gpus`` is its share of a GPU if the settings name one."""
    # Here, because ``samclip --local`` runs the services without Ray.
    from ray import serve
    from ray.serve.config import BackpressureConfig

    from services.deployment import ingress

    on_gpu = settings.device.startswith("cuda")
    deployed = serve.deployment(
        serve.ingress()(ingress.Ingress),
        name=service.application,
        user_config={
            name: getattr(settings, name) for name in (*ingress.CONFIGURED, *service.tunable)
        },
        max_ongoing_requests=MAX_ONGOING + MAX_AT_ONCE,
        max_queued_requests=MAX_QUEUED,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=20,
        **HEALTH,
        ray_actor_options={"num_cpus": settings.replica_cpus, "num_gpus": gpus if on_gpu else 0},
    )
    return deployed.bind(service, settings)


def check_batch(name: str, size: int) -> None:
    """Raise SettingsError for a batch that could never fill while another one runs."""
    if 2 * size > MAX_ONGOING:
        raise SettingsError(
            f"{name} is {size}: a replica works on {MAX_ONGOING} requests at once, and one batch "
            f"runs while the next one fills: choose {MAX_ONGOING // 2} or less"
        )


def choose_runtimes(settings: Settings, again: bool = False) -> None:
    """Measure what has not been measured on a quiet machine, or everything ``again``.

    Raises CheckpointError.
    """
    directory, cache = checkpoint.resolve(settings.checkpoint), settings.compiled_cache_dir
    settle(directory, settings.device, settings.dtype, settings.threads, cache, again)


def model(settings: Settings) -> SamClip:
    """Load all networks that the checkpoint has. Raises CheckpointError."""
    directory = checkpoint.resolve(settings.checkpoint)
    decoder = _decoder(checkpoint.read_config(directory))
    return SamClip(directory, _engine(settings, "image_encoder", "text_encoder", *decoder))


def sam_head(settings: Settings) -> SamHead:
    """Load the prompt encoder and the mask decoder, if there are any. Raises CheckpointError."""
    config = checkpoint.read_config(checkpoint.resolve(settings.checkpoint))
    return SamHead(config, _engine(settings, *_decoder(config)))


def _decoder(config: SamClipConfig) -> tuple[Network, ...]:
    if config.masks:
        return ("mask_decoder",)
    metrics.announce_engine("mask_decoder", "none", "none")
    return ()


def _engine(settings: Settings, *parts: Network) -> Engine:
    engine = load(
        checkpoint.resolve(settings.checkpoint),
        settings.device,
        settings.dtype,
        parts=parts,
        cache_dir=settings.compiled_cache_dir,
        threads=settings.threads,
    )
    dtypes = {"image_encoder": engine.dtype, "mask_decoder": engine.decoder_dtype}
    for part in parts:
        dtype = dtypes.get(part, "float32")
        metrics.announce_engine(part, engine.names[part], dtype)
        logger.info("%s runs on %s, %s", part, engine.names[part], dtype)
    return engine
