"""The Ray of a command: the cluster that RAY_ADDRESS names, or one for its process alone.

Ray's module is an argument, because this package works without it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samclip_core.errors import Unavailable
from samclip_core.io.files import check_folder, socket_folder

IN_RAY = len("/ray/session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store")
"""Bytes that Ray's longest path of a socket adds to that of the parent folder."""
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # Ray executes code for every caller with the token
    # Ray's mode for a single machine: its servers listen on the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray's two Prometheus servers cannot be switched off; an invalid port prevents their start.
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # by default Ray lowers the priority of workers
    # On a busy machine.
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
}
"""Variables of a Ray for one process alone. Those of the user do not replace them."""
STARTS = 5
"""Starts to try: Ray gives its node 30 seconds, too few on a busy machine, and has no setting."""


@contextmanager
def connected(ray: Any, **options: Any) -> Iterator[bool]:
    """Connect to the Ray of RAY_ADDRESS, or run one; yield whether it is this process's own.

    A Ray that this process is connected to is used as it is. ``options`` are those of ``ray.init``
    for an own Ray. Raises Unavailable if it does not start, OSError if it has no private folder.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        yield address == "local"
    elif address == "local":
        with socket_folder(IN_RAY) as parent, started(ray, parent, **options):
            yield True
    else:
        chosen = {name: options[name] for name in options.keys() & OUTPUT}
        ray.init(address, **chosen)
        try:
            yield False
        finally:
            ray.shutdown()


OUTPUT = {"log_to_driver", "logging_level"}
"""Options that also apply to a cluster."""


@contextmanager
def started(ray: Any, parent: Path, **options: Any) -> Iterator[None]:
    """Run a Ray that other users and hosts cannot reach, with its files in ``parent``/ray.

    Ray opens its own folder to all users, so ``parent`` must be private: PermissionError otherwise.
    Its processes listen on the loopback interface and answer callers with a token that only they
    and this process have. Workers import nothing from the current folder. Raises Unavailable if
    Ray does not start.
    """
    check_folder(parent)
    job = ray.job_config.JobConfig()
    job._runtime_env_has_working_dir = lambda: True  # else the current folder is on their path
    with _environment(ray, RAY_TMPDIR=str(parent), RAY_AUTH_TOKEN=secrets.token_hex(32)):
        options |= {"_temp_dir": str(parent / "ray"), "_node_ip_address": "127.0.0.1"}
        _start(ray, job_config=job, include_dashboard=False, **options)
        try:
            check_folder(parent)
            yield
        finally:
            ray.shutdown()


def _start(ray: Any, **options: Any) -> None:
    """Start Ray, again while the machine is too busy for it. Raises Unavailable."""
    import psutil  # which Ray brings

    process = psutil.Process()
    for left in reversed(range(STARTS)):
        others = process.children(recursive=True)
        try:
            ray.init("local", **options)
            return
        except Exception as error:  # Ray raises no more precise type
            ray.shutdown()
            # Ray forgets those of a start that failed, and they would make the machine busier.
            for child in {*process.children(recursive=True)}.difference(others):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            if not left:
                raise Unavailable(
                    f"Ray did not start in {STARTS} tries: {error}. Give the command again when "
                    "the machine has more free memory and disk (samclip doctor checks both), or "
                    "less other work"
                ) from error


@contextmanager
def _environment(ray: Any, **more: str) -> Iterator[None]:
    """Set the variables of an own Ray for this process and its children; restore them later.

    Ray has read some of them when it was imported.
    """
    before, constants = dict(os.environ), ray._private.ray_constants
    clusters = constants.ENABLE_RAY_CLUSTER
    os.environ.update(ENVIRONMENT | more)
    constants.ENABLE_RAY_CLUSTER = False
    _read_again(ray)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        constants.ENABLE_RAY_CLUSTER = clusters
        _read_again(ray)


def _read_again(ray: Any) -> None:
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
