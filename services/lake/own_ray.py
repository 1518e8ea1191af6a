"""The Ray of a batch: the cluster's, or one for this command alone."""

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from samclip_core.engine.processor import cores
from services.private_files import IN_RAY, socket_folder
from services.settings import MIB

OWN_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # Ray executes code for whoever may call it
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it warns of what Ray Data does by itself
    "RAY_worker_niceness": "0",  # a nice worker may not start in time on a busy machine
    "RAY_worker_register_timeout_seconds": "300",
}
"""Variables of Ray where it runs for this command alone."""


@contextmanager
def connected(cpus: int, gpus: float) -> Iterator[None]:
    """Connect to the Ray of RAY_ADDRESS, or else run one for this command alone.

    Raises ValueError if this machine has no room for a worker of so many cores and GPUs: Ray would
    wait for ever. A cluster may grow.

    Ray is imported here, and nowhere before: it reads some variables at its import. What it prints,
    such as the error of a lost node, goes to stderr: stdout is the command's.
    """
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        options: dict[str, Any] = {"address": os.environ.get("RAY_ADDRESS", "local")}
        own = options["address"] == "local"
        if own:
            os.environ |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), **OWN_RAY, **os.environ}
            options |= {
                "num_cpus": cores(),
                "include_dashboard": False,
                "object_store_memory": 128 * MIB,
                "_temp_dir": stack.enter_context(socket_folder(IN_RAY)),
            }
        import ray
        import ray.data

        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        stack.callback(ray.shutdown)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found = ray.cluster_resources()
        cores_here, gpus_here = found.get("CPU", 0), found.get("GPU", 0)
        if own and (cpus > cores_here or gpus > gpus_here):
            raise ValueError(
                f"a worker takes {cpus} cores and {gpus:g} GPUs, and this machine has "
                f"{cores_here:g} and {gpus_here:g}: lower --cpus-per-worker or --gpus-per-worker, "
                "or set another --device"
            )
        yield
