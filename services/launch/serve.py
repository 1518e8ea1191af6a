"""``samclip serve``: Ray, the six Serve applications and the front door, in the foreground.

All processes belong to this one. Ctrl-C or SIGTERM ends them after the requests in flight. Another
Ray or ``samclip serve`` on the machine is not affected.
"""

import contextlib
import functools
import importlib
import io
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samclip.cli.usage import Parser

from samclip_core.errors import CheckpointError, SamClipError
from samclip_core.io import checkpoint, own_ray
from samclip_core.io.files import socket_folder
from services.deployment import replica
from services.front_door import haproxy, inner_haproxy, reload
from services.launch import flags, fork_server, isolation
from services.observability import logs
from services.request import calls
from services.request.routes import HEAD, SERVICERS, module_of
from services.retrieval import engine, folder
from services.settings import MIB, Settings, SettingsError

logger = logging.getLogger("services.launch.serve")  # __name__ may be __main__

READY_S = 60
"""Time limit for Serve's proxies to reach running replicas, which takes less than a second."""
DOOR_S = 5
"""A front door that ends sooner than this is not restarted: it would fail again."""
LOOK_S = 0.1
"""Interval between two looks at Ray's processes."""
RAY = "2.60"
"""The minor version of Ray whose parts ``services.front_door`` replaces; pyproject.toml pins it."""
NEEDED = ("gcs_server", "raylet")
"""Ray's processes without which no other can work; Ray does not restart them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    with contextlib.ExitStack() as stack:
        try:
            given = flags.read(parser().parse_args(argv))
            block = stack.enter_context(isolation.reserved(isolation.given_ports(given)))
            settings = isolation.complete(given, block)
            # Otherwise Serve would restart a replica that cannot load its files several times.
            verified = _passing(_verify, settings.apart(), settings.default)
            if not engine.may_use_redis(settings):
                stack.enter_context(folder.take(settings.index_dir, folder.SERVICE))
            print(f"starting {', '.join(settings.named)} on {settings.device} …", flush=True)
            # Before other processes need the processor:
            _passing(replica.choose_runtimes, verified, settings.default)
            directory = stack.enter_context(socket_folder(isolation.IN_DIRECTORY))
        except KeyboardInterrupt:
            return 0
        except (SettingsError, CheckpointError, folder.FolderError, OSError) as error:
            print(f"samclip serve: {error}", file=sys.stderr)
            return 2
        for stream in (sys.stdout, sys.stderr):  # flush each line, also into a file
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, write_through=False)
        os.environ.update(isolation.environment(settings, directory, block))
        stack.enter_context(fork_server.workers_forked(directory))
        logs.start(settings.log_level)
        greet = functools.partial(print, file=sys.stdout, flush=True)
        with logs.only_json():  # besides the greeting
            return _serve(settings, directory, greet)


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip serve",
        usage="%(prog)s [--config FILE] [--SETTING VALUE …]",
        description="Serve one or more models over gRPC and HTTP until Ctrl-C.",
        examples=[
            "samclip serve",
            "samclip serve --checkpoint runs/vit-b --device cuda --grpc-port 9001",
            "samclip serve --models edge,mobile=/models/mobile,today=mobile",
        ],
    )
    flags.add(made)
    return made


def _passing(
    step: Callable[[Settings], None], models: Mapping[str, Settings], default: str
) -> dict[str, Settings]:
    """Take a step for each model, and return those that pass it; another one fails alone.

    Raises CheckpointError of the ``default`` one.
    """
    passing = dict[str, Settings]()
    for name, settings in models.items():
        try:
            step(settings)
            passing[name] = settings
        except CheckpointError as error:
            if name == default:
                raise
            print(f"samclip serve: model {name} will not be loaded: {error}", file=sys.stderr)
    return passing


def _verify(settings: Settings) -> None:
    checkpoint.verify(checkpoint.resolve(settings.checkpoint))


def _serve(settings: Settings, directory: Path, greet: Callable[[str], None]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # background jobs of a shell ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        start = time.monotonic()
        import ray

        # Ray mostly waits for its processes while it starts, so import the applications now.
        importing = threading.Thread(target=_import_applications, args=[settings], daemon=True)
        importing.start()
        options = {"object_store_memory": 128 * MIB, "logging_level": logging.ERROR}
        with own_ray.started(ray, directory, **options):
            importing.join()
            _check_ray()
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has replaced it
            _run_applications(settings, directory, greet, start)
    except KeyboardInterrupt:
        return 0
    except (RuntimeError, PermissionError, SamClipError, SettingsError) as error:
        logger.error("%s", error)
    return 1


def _run_applications(
    settings: Settings, directory: Path, greet: Callable[[str], None], start: float
) -> None:
    """Start the applications, then run the front door for them until an error or Ctrl-C."""
    door, admin = None, directory / "door.sock"
    try:
        with _ray_watched(directory):
            _start_applications(settings)
            _wait_until_ready(settings)
            isolation.check_ports(settings)  # again: a service may have started since
            door = haproxy.start(settings, admin)
            _wait_for_door(door, admin)
            greet(_greeting(settings, time.monotonic() - start))
            while True:  # HAProxy ends only with this process, or on a failure
                started = time.monotonic()
                code = reload.watch(door, settings, admin)
                if time.monotonic() - started < DOOR_S:
                    raise RuntimeError(f"the front door ended right after its start (exit {code})")
                logger.error("the front door ended (exit %d): restarting it", code)
                door = haproxy.start(settings, admin)
    finally:
        _stop(door)


@contextlib.contextmanager
def _ray_watched(directory: Path) -> Iterator[None]:
    """End this process with exit code 1 if a needed process of its Ray ends meanwhile.

    Ray notices after a minute, and no thread can be interrupted while it waits for such a Ray. The
    children end with this process. ``directory``, the service's own, is removed.
    """
    import psutil  # which Ray brings
    import ray

    node, stopped = ray._private.worker._global_node, threading.Event()

    def watch() -> None:
        while not (lost := _lost(node)):
            if stopped.wait(LOOK_S):
                return
        if stopped.is_set():
            return
        logger.error(
            "%s of Ray ended, without which no request is answered: start the service again; if "
            "its memory was full, lower the settings that keep data in memory, or free some",
            lost,
        )
        # Ray's agents would wait for the lost process for a minute. HAProxy ends with this process,
        # whose main thread would report an earlier end.
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                if child.name() != "haproxy":
                    child.kill()
        shutil.rmtree(directory, ignore_errors=True)
        sys.stdout.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watches Ray").start()
    try:
        yield
    finally:
        stopped.set()


def _lost(node: Any) -> str:
    """Return the name of a needed process that has ended, and how; "" if all run."""
    for kind, process in node.dead_processes():
        if kind in NEEDED:
            code = process.returncode
            return f"{kind} (exit {code})" if code >= 0 else f"{kind} (signal {-code})"
    return ""


def _check_ray() -> None:
    """Raise RuntimeError if Ray or one of its servers lacks a part that this service replaces."""
    try:
        from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

        importlib.import_module("services.front_door.inner_ports")  # it reads those parts
        inner_haproxy.confined(HAPROXY_CONFIG_TEMPLATE)
    except (ImportError, AttributeError, ValueError) as error:
        raise RuntimeError(
            f"Ray {version('ray')} is installed, but this service replaces parts of Ray {RAY} and "
            f"of its servers, and one is missing: {error}; run pip install 'ray[serve]=={RAY}.*'"
        ) from error


def _import_applications(settings: Settings) -> None:
    for name in calls.applications(settings):
        importlib.import_module(module_of(name))


def _start_applications(settings: Settings) -> None:
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # No request_timeout_s: Serve measures it by the wall clock, so a clock that jumps ahead would
    # end requests in flight. The applications and the front door have their own time limits.
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": settings.inner_http_port},
        grpc_options={"port": settings.inner_grpc_port, "grpc_servicer_functions": SERVICERS},
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    targets = [
        serve.RunTarget(
            importlib.import_module(module_of(name)).build(_of(name, settings)),
            name=name,
            route_prefix=f"/{name}",
            logging_config=LoggingConfig(log_level=settings.log_level, enable_access_log=False),
        )
        for name in calls.applications(settings)
    ]
    serve.run_many(targets, wait_for_applications_running=False)  # it polls once per second


def _of(application: str, settings: Settings) -> Settings:
    """Return the settings of an application: that of a head of one's own has this one alone."""
    spec = settings.own_heads.get(application.removeprefix(HEAD))
    return settings.model_copy(update={"heads": (spec,)}) if spec else settings


def _wait_until_ready(settings: Settings) -> None:
    """Wait for the inner proxy to reach all replicas, each with its model loaded and warm.

    Raises RuntimeError if an application cannot start, or if all applications run but are not ready
    within ``READY_S``.
    """
    inner = f"http://127.0.0.1:{settings.inner_http_port}/gateway/readyz"
    headers = {calls.SECRET_HEADER: settings.front_door_secret}
    request = urllib.request.Request(inner, headers=headers)
    deadline, checked, reason = math.inf, time.monotonic(), ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
        except OSError as error:
            reason = str(error)
        time.sleep(0.1)
        if deadline == math.inf and time.monotonic() - checked > 1:
            checked = time.monotonic()
            if _all_run(calls.applications(settings)):
                deadline = checked + READY_S
    raise RuntimeError(f"the service did not become ready: {reason}")


def _all_run(names: Sequence[str]) -> bool:
    """Return whether Serve reports all applications as running.

    A call costs the controller 10 ms and this process 30. Raises RuntimeError with Serve's message
    if an application cannot start.
    """
    from ray import serve

    applications = serve.status().applications
    for name, application in applications.items():
        if application.status == "DEPLOY_FAILED":
            raise RuntimeError(
                f"the application {name} did not start: {application.message} The log above says "
                "why; samclip doctor, with the same settings, names the usual reasons"
            )
    return all(name in applications and applications[name].status == "RUNNING" for name in names)


def _wait_for_door(door: subprocess.Popen[bytes], admin: Path) -> None:
    """Wait until HAProxy listens. The public port cannot be probed: it may need a certificate."""
    while door.poll() is None:
        try:
            reload.send(admin, "show info")
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("the front door ended right after its start")


def _greeting(settings: Settings, seconds: float) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    http = "https" if settings.tls_cert_file else "http"
    return (
        f"ready in {seconds:.1f} s\n"
        f"  gRPC  {host}:{settings.grpc_port}\n"
        f"  HTTP  {http}://{host}:{settings.http_port}\n"
        f"  docs  {http}://{host}:{settings.http_port}/docs\n"
        "Ctrl-C stops."
    )


def _stop(door: subprocess.Popen[bytes] | None) -> None:
    """Drain the front door, then stop Serve and Ray."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import ray
    from ray import serve

    if door is not None:
        print("stopping …", flush=True)
        haproxy.stop(door)
    # Ray prints an error because Serve's controller is killed while it answers.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
