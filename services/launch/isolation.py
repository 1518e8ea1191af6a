"""Give an instance its own ports, secret, directory and environment.

It then does not interfere with another Ray or ``samclip serve`` on the machine.
"""

import random
import secrets
import shlex
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from samclip_core.io import private_ray
from services.cache.connection import connect
from services.front_door import haproxy
from services.request import calls
from services.settings import MIB, Settings, SettingsError

SERVES_OWN = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
"""Ports that Serve opens and this service does not use."""
SINGLE_MACHINE = {
    "RAY_DEDUP_LOGS": 0,  # similar lines of two requests both matter
    # The services log JSON, which must reach the output of this process unchanged.
    "RAY_DISABLE_WORKER_LOG_PREFIX": 1,
    "RAY_COLOR_PREFIX": 0,
    "RAY_SERVE_ENABLE_HA_PROXY": 1,
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "services.front_door.inner_ports.guard",
    # Larger frames and windows: images need a quarter less CPU time in both HAProxies.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": haproxy.BUFFER_BYTES,
    "RAY_SERVE_HAPROXY_H2_MAX_FRAME_SIZE": haproxy.BUFFER_BYTES,
    "RAY_SERVE_HAPROXY_H2_BE_INITIAL_WINDOW_SIZE": MIB,
    "RAY_SERVE_HAPROXY_H2_FE_INITIAL_WINDOW_SIZE": MIB,
    # The services do not block the event loop: a single loop saves thread switches.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": 0,
    # By default Serve kills a proxy that is not ready in 5 seconds: too early on a slow machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": 60,
    # Serve restarts its HAProxy after three consecutive failed checks.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": 1,
    # A replica that does not answer health checks does not answer a request to stop either.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": 1,
    # The front door drains before Serve stops.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 0.1,
    # These save a third of the idle service's CPU time: Serve's metrics are not read, and four
    # iterations of the control loop per second are enough for one machine.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": 5000,
    "RAY_event_stats": 0,
    "RAY_task_events_report_interval_ms": 0,
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": 0.25,
    # NumPy's matrix products are small, and all processes share the cores.
    "OPENBLAS_NUM_THREADS": 1,
    "GRPC_ENABLE_FORK_SUPPORT": 0,  # processes fork only before they use gRPC
    "MALLOC_ARENA_MAX": 1,  # each further arena keeps up to 64 MB of freed memory
}
"""Variables of Ray and Serve that are the same for each instance; ``private_ray`` sets others."""
IN_DIRECTORY = max(private_ray.IN_RAY, len(f"/{'0' * 56}/admin.sock.1234567.tmp"))
"""Bytes that the longest path of a socket adds to that of the directory. Serve puts its HAProxy's
into a folder named after the node, and HAProxy makes it under a longer name."""
SIZE = 210
"""Two ports for Serve's proxies, 200 for replicas, four unused ones of Serve, three spare, and the
last to reserve the block."""
BLOCKS = [range(first, first + SIZE) for first in range(20_000, 26_000 - SIZE + 1, SIZE)]
"""All blocks are below the ephemeral ports, which the system may give to any connection."""
REPLICA_PORTS = 100  # per protocol, HTTP and gRPC; one per replica on this machine


@contextmanager
def reserved(besides: Collection[int] = ()) -> Iterator[range]:
    """Reserve a block of free ports without any of ``besides`` while the context lasts.

    The processes listen seconds after their ports were chosen, and gRPC shares a port with another
    service without an error. So a socket at the last port reserves the block: the kernel gives such
    a port to one process at a time, and frees it when that process ends. Raises SettingsError if
    no block is free.
    """
    for block in random.sample(BLOCKS, len(BLOCKS)):
        with socket.socket() as holder:
            try:
                holder.bind(("", block[-1]))
            except OSError:  # another service has reserved it
                continue
            if not set(besides) & set(block) and is_free(block[:-1]):
                yield block
                return
    raise SettingsError(
        f"no {SIZE} consecutive ports are free from {BLOCKS[0].start} to {BLOCKS[-1].stop - 1}: "
        "stop a service, or start this one in its own network namespace"
    )


def is_free(ports: range) -> bool:
    """Return whether no process listens at any of the ports."""
    with ExitStack() as probes:
        try:
            for port in ports:
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore TIME_WAIT
                probe.bind(("", port))
        except OSError:
            return False
    return True


def complete(settings: Settings, block: range) -> Settings:
    """Set the secret and the inner ports, the latter from the reserved ``block``.

    Raises SettingsError if the settings cannot work.
    """
    check_ports(settings)
    if settings.http_port == settings.grpc_port:
        raise SettingsError("http_port and grpc_port are the same: set different ports")
    haproxy.check_access(settings)
    haproxy.binary()
    if settings.redis_url:
        connect(settings.redis_url, settings.redis_timeout_ms / 1000)  # checks the URL only
    chosen = {
        "inner_http_port": settings.inner_http_port or block.start,
        "inner_grpc_port": settings.inner_grpc_port or block.start + 1,
        "front_door_secret": settings.front_door_secret or secrets.token_urlsafe(32),
    }
    return settings.model_copy(update=chosen)


def given_ports(settings: Settings) -> set[int]:
    """Return the ports in the settings, which the reserved block must not contain."""
    inner = settings.inner_http_port, settings.inner_grpc_port
    return {settings.http_port, settings.grpc_port, *inner}


def check_ports(settings: Settings) -> None:
    """Raise SettingsError if another process listens at a port of the front door."""
    for name in ("http_port", "grpc_port"):
        check_free(settings.host, getattr(settings, name), name)


def check_free(host: str, port: int, name: str) -> None:
    """Raise SettingsError if a process listens at the port, which is the setting ``name``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(
                f"cannot listen at {host}:{port} ({error.strerror}): stop the process that listens "
                f"there, or choose another port with {flag} or SAMCLIP_{name.upper()}"
            ) from error


def tethered(binary: str, script: Path) -> Path:
    """Write a script that starts HAProxy through ``services/front_door/inner_haproxy.py``."""
    launcher = Path(__file__).parents[1] / "front_door" / "inner_haproxy.py"
    command = shlex.join([sys.executable, "-IS", str(launcher), binary])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o700)
    return script


def _ports(block: range) -> dict[str, int]:
    """Return the ports of the replicas and of Serve, after the two that ``complete`` uses."""
    first = block.start + 2
    own = {name: first + 2 * REPLICA_PORTS + i for i, name in enumerate(SERVES_OWN)}
    return own | {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first + REPLICA_PORTS - 1,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": first + REPLICA_PORTS,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": first + 2 * REPLICA_PORTS - 1,
    }


def environment(settings: Settings, directory: Path, block: range) -> dict[str, str]:
    """Return the environment variables of Ray, Serve and all replicas.

    ``block`` is the block of reserved ports. Serve reads its variables at import, so they must be
    set before.
    """
    metrics = directory / "metrics"
    metrics.mkdir()
    inner = {
        "BINARY_PATH": tethered(haproxy.binary(), directory / "haproxy"),
        "CONFIG_FILE_LOC": directory / "haproxy.cfg",
        "SOCKET_PATH": directory / "admin.sock",
        "SERVER_STATE_BASE": directory,
        "SERVER_STATE_FILE": directory / "server-state",
        "METRICS_SOCKET_PATH": directory / "metrics.sock",
        "METRICS_ENABLED": 0,
        "LOG_TARGET": directory / "no.log",  # does not exist; the front door logs requests
        "NBTHREAD": 1,
        "HARD_STOP_AFTER_S": haproxy.DRAIN_S,
    }
    values = {
        **SINGLE_MACHINE,
        **_ports(block),
        calls.SECRET_VARIABLE: settings.front_door_secret,
        "PROMETHEUS_MULTIPROC_DIR": metrics,
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": settings.max_request_bytes,
    }
    values |= {f"RAY_SERVE_HAPROXY_{name}": value for name, value in inner.items()}
    return {name: str(value) for name, value in values.items()}
