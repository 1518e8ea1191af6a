"""The processes of a running service, by their roles."""

import signal

import psutil

from tests.e2e.conftest import Service

CONTROLLER = "ServeController"
PROXY_ACTOR = "HAProxyManager"


def replica(application: str) -> str:
    """Return the text that the process title of a replica contains."""
    return f"ServeReplica:{application}"


def titled(service: Service, title: str) -> list[psutil.Process]:
    """Return the service's processes whose command line contains ``title``."""
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
    """Return the HAProxy that the launcher started."""
    (door,) = _haproxies(service, own=True)
    return door


def inner_proxies(service: Service) -> list[psutil.Process]:
    """Return Serve's HAProxy, and those of earlier configurations that still drain."""
    return _haproxies(service, own=False)


def _haproxies(service: Service, own: bool) -> list[psutil.Process]:
    children = psutil.Process(service.process.pid).children(recursive=True)
    found = [child for child in children if child.name() == "haproxy"]
    return [child for child in found if (child.ppid() == service.process.pid) is own]
