"""``samclip serve``: Ray, the six Serve applications and the front door, in the foreground.

Everything belongs to this process: it ends with Ctrl-C or SIGTERM after the requests in flight, and
nothing of it stays behind. Another Ray, or another ``samclip serve``, on the machine is left alone.
"""

import argparse
import contextlib
import importlib
import io
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samclip_core import checkpoint
from samclip_core.errors import CheckpointError
from services import front_door
from services.settings import MIB, Settings, SettingsError

SERVICERS = [
    "samclip.v1.samclip_pb2_grpc.add_BackboneServiceServicer_to_server",
    "samclip.v1.samclip_pb2_grpc.add_ClassificationServiceServicer_to_server",
    "samclip.v1.samclip_pb2_grpc.add_SegmentationServiceServicer_to_server",
    "samclip.v1.samclip_pb2_grpc.add_SemanticSegmentationServiceServicer_to_server",
    "samclip.v1.samclip_pb2_grpc.add_RetrievalServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]
REPLICA_PORTS = 100  # for as many replicas on this machine, and again for their gRPC
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    try:
        settings = complete(_read_settings(argv))
        checkpoint.resolve(settings.checkpoint)
    except (SettingsError, CheckpointError) as error:
        print(f"samclip serve: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="samclip-", ignore_cleanup_errors=True) as directory:
        os.environ.update(environment(settings, Path(directory)))
        return _run(settings, directory)


def _read_settings(argv: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        prog="samclip serve",
        description="Serve a checkpoint over gRPC and HTTP until Ctrl-C.",
        epilog="Every setting can stand in the file of --config (TOML), or in the environment as "
        "SAMCLIP_<NAME>; services/settings.py lists them.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    parser.add_argument("--checkpoint", help="bundled name or directory (edge)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--host", help="address to listen at (127.0.0.1)")
    parser.add_argument("--http-port", type=int, help="(8000)")
    parser.add_argument("--grpc-port", type=int, help="(9000)")
    parser.add_argument("--redis-url", help="embedding cache shared by replicas (none)")
    parser.add_argument("--api-keys-file", type=Path, help="ask for one of these keys, one a line")
    parser.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    flags = vars(parser.parse_args(argv))
    return Settings.load(flags.pop("config"), **flags)


def complete(settings: Settings) -> Settings:
    """Fill in what is chosen at start. Raises SettingsError for a port in use."""
    for name in ("http_port", "grpc_port"):
        _check_free(settings.host, getattr(settings, name), name)
    if settings.http_port == settings.grpc_port:
        raise SettingsError("http_port and grpc_port are the same: choose another for one of them")
    if settings.api_keys_file and not settings.api_keys_file.is_file():
        raise SettingsError(f"api_keys_file {settings.api_keys_file} is not a file")
    chosen = {
        "inner_http_port": settings.inner_http_port or free_port(),
        "inner_grpc_port": settings.inner_grpc_port or free_port(),
        "front_door_secret": settings.front_door_secret or secrets.token_urlsafe(32),
    }
    return settings.model_copy(update=chosen)


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


def free_port() -> int:
    """Return a port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def free_range(count: int) -> int:
    """Return the first of ``count`` ports in a row that nobody listens at now."""
    while True:
        first = 20_000 + secrets.randbelow(12_000)  # clear of those that the system deals out
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("", port))
            return first


def environment(settings: Settings, directory: Path) -> dict[str, str]:
    """Return what Ray, Serve and all replicas find in their environment.

    Serve reads its variables when it is imported, so they must be set before.
    """
    metrics = directory / "metrics"
    metrics.mkdir()
    haproxy = {
        "CONFIG_FILE_LOC": directory / "haproxy.cfg",
        "SOCKET_PATH": directory / "admin.sock",
        "SERVER_STATE_BASE": directory,
        "SERVER_STATE_FILE": directory / "server-state",
        "METRICS_SOCKET_PATH": directory / "metrics.sock",
        "METRICS_PORT": free_port(),
        "STATS_PORT": free_port(),
        "METRICS_ENABLED": 0,
        "NBTHREAD": 1,
        "HARD_STOP_AFTER_S": front_door.DRAIN_S,
    }
    # Replicas of two services at the same gRPC port would not notice, and each get some of the
    # other's calls: gRPC binds with SO_REUSEPORT.
    first_port = free_range(2 * REPLICA_PORTS)
    values = {
        front_door.SECRET_VARIABLE: settings.front_door_secret,
        "PROMETHEUS_MULTIPROC_DIR": metrics,
        "RAY_USAGE_STATS_ENABLED": 0,
        "RAY_SERVE_ENABLE_HA_PROXY": 1,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": free_port(),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": free_port(),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first_port,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first_port + REPLICA_PORTS - 1,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": first_port + REPLICA_PORTS,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": first_port + 2 * REPLICA_PORTS - 1,
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": settings.max_request_bytes,
        # A slow machine is no failure: Serve kills a proxy that is not up in 5 seconds.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": 60,
        # The front door has drained before Serve is told to stop.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 0.1,
        # The backbone takes the cores by itself; nobody else may.
        **dict.fromkeys(ONE_THREAD, 1),
    }
    values |= {f"RAY_SERVE_HAPROXY_{name}": value for name, value in haproxy.items()}
    return {name: str(value) for name, value in values.items()}


def _run(settings: Settings, directory: str) -> int:
    door = None
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        start = time.monotonic()
        print(f"starting {settings.checkpoint} on {settings.device} …", flush=True)
        # Ray mostly waits for its processes: time enough to import ours.
        threading.Thread(target=_import_applications, args=[settings], daemon=True).start()
        _start_ray(directory)
        signal.signal(signal.SIGTERM, _interrupt)  # Ray has set its own
        _start_applications(settings)
        door = front_door.start(settings)
        _wait_until_ready(settings, door)
        print(_greeting(settings, time.monotonic() - start), flush=True)
        return door.wait() or 1  # it ends only with us, or by accident
    except KeyboardInterrupt:
        return 0
    except RuntimeError as error:
        print(f"samclip serve: {error}", file=sys.stderr)
        return 1
    finally:
        _stop(door)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _start_ray(directory: str) -> None:
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=128 * MIB,
        logging_level=logging.ERROR,
        _temp_dir=directory,
        _node_ip_address="127.0.0.1",
    )


def _import_applications(settings: Settings) -> None:
    for name in front_door.applications(settings):
        importlib.import_module(f"services.{name}.app")


def _start_applications(settings: Settings) -> None:
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level=settings.log_level, enable_access_log=False)
    limit_s = settings.request_timeout_s + 1  # the applications' own limit comes first
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": "127.0.0.1",
            "port": settings.inner_http_port,
            "request_timeout_s": limit_s,
        },
        grpc_options={
            "port": settings.inner_grpc_port,
            "grpc_servicer_functions": SERVICERS,
            "request_timeout_s": limit_s,
        },
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    serve.run_many([_target(name, settings, quiet) for name in front_door.applications(settings)])


def _target(name: str, settings: Settings, logging_config: Any) -> Any:
    from ray import serve

    build = importlib.import_module(f"services.{name}.app").build
    return serve.RunTarget(
        build(settings), name=name, route_prefix=f"/{name}", logging_config=logging_config
    )


def _wait_until_ready(settings: Settings, door: subprocess.Popen[bytes]) -> None:
    """Wait for the inner proxy to have heard of all replicas."""
    url = f"http://{_reachable(settings.host)}:{settings.http_port}/readyz"
    deadline = time.monotonic() + 60
    reason = ""
    while door.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
        except OSError as error:
            reason = str(error)
        time.sleep(0.1)
    raise RuntimeError(f"the service did not become ready: {reason or 'the front door ended'}")


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def _greeting(settings: Settings, seconds: float) -> str:
    host = _reachable(settings.host)
    return (
        f"ready in {seconds:.1f} s\n"
        f"  gRPC  {host}:{settings.grpc_port}\n"
        f"  HTTP  http://{host}:{settings.http_port}\n"
        f"  docs  http://{host}:{settings.http_port}/docs\n"
        "Ctrl-C stops."
    )


def _stop(door: subprocess.Popen[bytes] | None) -> None:
    """Let requests finish at the front door, then end everything behind it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import ray
    from ray import serve

    if door is not None:
        print("stopping …", flush=True)
        front_door.stop(door)
    # Serve's controller is killed while it answers, and Ray complains of that.
    with contextlib.redirect_stdout(io.StringIO()):
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
