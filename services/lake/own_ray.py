"""The Ray of a batch: the cluster's, or one for this command alone."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from samclip_core.engine.processor import cores
from samclip_core.io import own_ray
from services.settings import MIB


@contextmanager
def connected(cpus: int, gpus: float) -> Iterator[None]:
    """Connect to the Ray of RAY_ADDRESS, or else run one for this command alone.

    Raises ValueError if this machine has no room for a worker of so many cores and GPUs: Ray would
    wait for ever. A cluster may grow. Unavailable and OSError as ``own_ray.connected``.

    What Ray prints, such as the error of a lost node, goes to stderr: stdout is the command's.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what Ray Data does
    with redirect_stdout(sys.stderr):
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with own_ray.connected(
            ray,
            num_cpus=cores(),
            object_store_memory=128 * MIB,
            log_to_driver=False,
            logging_level=logging.ERROR,
        ) as own:
            found = ray.cluster_resources()
            cores_here, gpus_here = found.get("CPU", 0), found.get("GPU", 0)
            if own and (cpus > cores_here or gpus > gpus_here):
                raise ValueError(
                    f"a worker takes {cpus} cores and {gpus:g} GPUs, and this machine has "
                    f"{cores_here:g} and {gpus_here:g}: lower --cpus-per-worker or "
                    "--gpus-per-worker, or set another --device"
                )
            yield
