"""``samclip serve``: Ray, the six Serve applications and the front door, in the foreground.

All processes belong to this one. Ctrl-C or SIGTERM ends them after the requests in flight. Another
Ray or ``samclip serve`` on the machine is not affected.
"""

import contextlib
import functools
import importlib
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from samclip.cli.usage import Parser

from samclip_core.commands import pull
from samclip_core.errors import CheckpointError, SamClipError
from samclip_core.io import checkpoint, private_ray
from samclip_core.io.files import socket_folder
from services.deployment import replica
from services.front_door import haproxy, inner_haproxy, reload
from services.gateway import browser_decoder
from services.heads.own import check as own_heads
from services.launch import applications, flags, fork_server, isolation
from services.observability import logs
from services.retrieval import tables
from services.settings import MIB, Settings, SettingsError
from services.stop import Stop, Stopped

logger = logging.getLogger("services.launch.serve")  # __name__ may be __main__

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
            args = parser().parse_args(argv)
            given = flags.read(args)
            block = stack.enter_context(isolation.reserved(isolation.given_ports(given)))
            settings = isolation.complete(given, block)
            # Otherwise Serve would restart a replica that cannot load its files several times.
            own_heads.check(settings.heads)
            verify = functools.partial(_verify, yes=args.yes)
            verified = _passing(verify, settings.per_model(), settings.default)
            tables.prepare(settings.index_dir)
            if settings.browser_decoder:
                browser_decoder.prepare()
            print(f"starting {', '.join(settings.named)} on {settings.device} …", flush=True)
            # Before other processes need the processor:
            _passing(replica.choose_runtimes, verified, settings.default)
            directory = stack.enter_context(socket_folder(isolation.IN_DIRECTORY))
        except KeyboardInterrupt:
            return 0
        except (SettingsError, CheckpointError, OSError) as error:
            print(f"samclip serve: {pull.said(error)}", file=sys.stderr)
            return 2
        for stream in (sys.stdout, sys.stderr):  # flush each line, also into a file
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, write_through=False)
        os.environ.update(isolation.environment(settings, directory, block))
        stop = Stop("samclip serve", directory)
        stack.enter_context(stop.listening())
        stack.enter_context(fork_server.workers_forked(directory))
        logs.start(settings.log_level)
        greet = functools.partial(print, file=sys.stdout, flush=True)
        with logs.only_json():  # besides the greeting
            ended = _serve(settings, directory, greet, stop)
    return stop.say(ended)  # last: all others have ended


def parser() -> Parser:
    made = Parser(
        prog="samclip serve",
        usage="%(prog)s [--config FILE] [--SETTING VALUE …]",
        description="Serve one or more models over gRPC and HTTP until Ctrl-C.",
        examples=[
            "samclip serve",
            "samclip serve --checkpoint mobile  # a published model: samclip models",
            "samclip serve --checkpoint runs/vit-b --device cuda --grpc-port 9001",
            "samclip serve --models edge,mobile=/models/mobile,today=mobile",
        ],
    )
    flags.add(made)
    made.add_argument("--yes", action="store_true", help=f"for a published model: {pull.YES}")
    return made


def _passing(
    step: Callable[[Settings], None], models: Mapping[str, Settings], default: str
) -> dict[str, Settings]:
    """Take a step for each model, and return those that pass it; another one fails alone.

    Raises CheckpointError or OSError of the ``default`` one.
    """
    passing = dict[str, Settings]()
    for name, settings in models.items():
        try:
            step(settings)
            passing[name] = settings
        except (CheckpointError, OSError) as error:
            if name == default:
                raise
            print(
                f"samclip serve: model {name} will not be loaded: {pull.said(error)}",
                file=sys.stderr,
            )
    return passing


def _verify(settings: Settings, yes: bool) -> None:
    """Check a checkpoint, which is made first if it is a published model that is not here."""
    pull.ensure(settings.checkpoint, yes)
    checkpoint.verify(checkpoint.resolve(settings.checkpoint))


def _serve(
    settings: Settings, directory: Path, greet: Callable[[str], None], stop: Stop
) -> Exception:
    """Serve until a signal or an error, and return it."""
    try:
        start = time.monotonic()
        import ray

        ray._private.utils.set_sigterm_handler = lambda handler: None  # it would end the process
        # Ray mostly waits for its processes while it starts, so import the applications now.
        importing = threading.Thread(target=applications.load, args=[settings], daemon=True)
        importing.start()
        options = {"object_store_memory": 128 * MIB, "logging_level": logging.ERROR}
        with private_ray.started(ray, directory, **options):
            stop.take_signals()
            importing.join()
            _check_ray()
            _run_applications(settings, directory, greet, start, stop)
    except (Stopped, RuntimeError, PermissionError, SamClipError, SettingsError) as ended:
        return ended


def _run_applications(
    settings: Settings, directory: Path, greet: Callable[[str], None], start: float, stop: Stop
) -> NoReturn:
    """Start the applications, then run the front door for them until an error or a signal."""
    door, admin = None, directory / "door.sock"
    try:
        stop.wait()
        with _ray_watched(stop):
            applications.start(settings)
            applications.wait_until_ready(settings, stop.wait)
            isolation.check_ports(settings)  # again: a service may have started since
            door = haproxy.start(settings, admin)
            _wait_for_door(door, admin, stop)
            greet(_greeting(settings, time.monotonic() - start))
            while True:  # HAProxy ends only with this process, or on a failure
                started = time.monotonic()
                code = reload.watch(door, settings, admin, stop.wait)
                if time.monotonic() - started < DOOR_S:
                    raise RuntimeError(f"the front door ended right after its start (exit {code})")
                logger.error("the front door ended (exit %d): restarting it", code)
                door = haproxy.start(settings, admin)
    finally:
        stop.begin()
        _end(door)


@contextlib.contextmanager
def _ray_watched(stop: Stop) -> Iterator[None]:
    """End this process with exit code 1 if a needed process of its Ray ends meanwhile.

    Ray notices after a minute, its agents would wait for the lost process for as long, and no
    thread can be interrupted while it waits for such a Ray.
    """
    import ray

    node, left = ray._private.worker._global_node, threading.Event()

    def watch() -> None:
        while not (lost := _lost(node)):
            if left.wait(LOOK_S):
                return
        if not left.is_set():
            stop.kill(
                f"{lost} of Ray ended, without which no request is answered: start the service "
                "again; if its memory was full, lower the settings that keep data in memory, or "
                "free some"
            )

    threading.Thread(target=watch, daemon=True, name="watches Ray").start()
    try:
        yield
    finally:
        left.set()


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


def _wait_for_door(door: haproxy.FrontDoor, admin: Path, stop: Stop) -> None:
    """Wait until HAProxy listens. The public port cannot be probed: it may need a certificate."""
    while door.poll() is None:
        try:
            reload.send(admin, "show info")
            return
        except OSError:
            stop.wait(0.02)
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


def _end(door: haproxy.FrontDoor | None) -> None:
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
