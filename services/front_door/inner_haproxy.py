"""Start Serve's HAProxy so that it requires the secret and ends with its parent.

``python -IS inner_haproxy.py BINARY ARGUMENTS`` runs at each reload, so it imports few modules.
Serve's configuration exposes metrics and statistics on all interfaces and answers health, route and
application queries without a secret. Serve has no setting to change that. Serve may also start
HAProxy while Serve is being stopped, so HAProxy must end with its parent.
"""

import ctypes
import json
import os
import re
import signal
import sys
import time

REFUSAL = (
    "this port answers only what comes through the front door; use the service's public address"
)
WATCH_S = 0.5
"""Interval between two looks at the parent, where the kernel does not report its end."""
_PR_SET_PDEATHSIG = 1
_UNUSED = ("frontend prometheus", "listen stats")
# The secret may begin with a dash, so -- ends the options before it.
_UNLESS = 'unless { req.hdr(x-samclip-front-door) -m str -- "${SAMCLIP_FRONT_DOOR_SECRET}" }\n'
_PROBLEM = json.dumps(
    {"type": "about:blank", "title": "not authenticated", "status": 401, "detail": REFUSAL}
).replace('"', r"\"")
_RULES = {
    "frontend http_frontend": "    http-request return status 401"
    f' content-type application/problem+json string "{_PROBLEM}" {_UNLESS}',
    "frontend grpc_frontend": "    http-request return status 200 content-type application/grpc"
    f' hdr grpc-status 16 hdr grpc-message "{REFUSAL}" {_UNLESS}',
}


def confined(configuration: str) -> str:
    """Remove the metrics and statistics sections; require the secret in the others.

    Raises ValueError if a section is missing: a port would stay open.
    """
    if all(rule in configuration for rule in _RULES.values()):
        return configuration
    for section in _UNUSED:
        configuration = _replaced(rf"{section}\n(?:[ \t].*\n|\n)*", "", configuration)
    for section, rule in _RULES.items():
        configuration = _replaced(rf"{section}\n", f"{section}\n{rule}", configuration)
    return configuration


def _replaced(pattern: str, replacement: str, configuration: str) -> str:
    changed, count = re.subn(f"^{pattern}", lambda _: replacement, configuration, flags=re.M)
    if count != 1:
        raise ValueError(
            f"Serve's HAProxy configuration contains {pattern!r} {count} times, expected once"
        )
    return changed


def _end_with_parent() -> None:
    """Have this process, which becomes HAProxy, end with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        return
    haproxy, parent = os.getpid(), os.getppid()
    if os.fork():
        return
    os.closerange(0, 3)  # readers of HAProxy's output must see its end
    while _runs(parent):
        time.sleep(WATCH_S)
        if os.getppid() != haproxy:  # it has ended
            os._exit(0)
    os.kill(haproxy, signal.SIGTERM)
    os._exit(0)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def main() -> None:
    """Restrict the configuration, then replace this process with HAProxy."""
    command = sys.argv[1:]
    _end_with_parent()
    # The same script starts the front door, which has none of Serve's variables.
    if "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC" in os.environ and "-f" in command:
        file = command[command.index("-f") + 1]
        with open(file, "r+") as opened:
            configuration = confined(opened.read())
            opened.seek(0)
            opened.truncate()
            opened.write(configuration)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
