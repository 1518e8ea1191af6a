"""The processes of a running service by what they are."""

import signal

import psutil

from tests.e2e.conftest import Service

CONTROLLER = "ServeController"
PROXY_ACTOR = "HAProxyManager"


def replica(application: str) -> str:
    """What the title of a replica's process holds."""
    return f"ServeReplica:{application}"


def titled(service: Service, title: str) -> list[psutil.Process]:
    """Processes in whose command line this stands."""
    found = []
    for pid in service.processes():
        try:
            process = psutil.Process(pid)
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def the(service: Service, title: str) -> psutil.Process:
    (found,) = titled(service, title)
    return found


def kill(service: Service, title: str) -> None:
    the(service, title).send_signal(signal.SIGKILL)


def front_door(service: Service) -> psutil.Process:
    """The HAProxy that the service itself has started."""
    (door,) = _haproxies(service, own=True)
    return door


def inner_proxies(service: Service) -> list[psutil.Process]:
    """Serve's own HAProxy, and those of earlier configurations that still answer something."""
    return _haproxies(service, own=False)


def _haproxies(service: Service, own: bool) -> list[psutil.Process]:
    children = psutil.Process(service.process.pid).children(recursive=True)
    found = [child for child in children if child.name() == "haproxy"]
    return [child for child in found if (child.ppid() == service.process.pid) is own]
