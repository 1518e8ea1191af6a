"""The applications of ``samclip serve`` in Ray Serve: imported, started, and waited for."""

import importlib
import logging
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from services.request import calls
from services.request.routes import HEAD, SERVICERS, module_of
from services.settings import Settings

READY_S = 60
"""Time limit for Serve's proxies to reach running replicas, which takes less than a second."""


def load(settings: Settings) -> None:
    for name in calls.applications(settings):
        importlib.import_module(module_of(name))


def start(settings: Settings) -> None:
    """Start all applications under the Ray that runs, without waiting for them."""
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
    if not application.startswith(HEAD):
        return settings
    spec = settings.own_heads[application.removeprefix(HEAD)]
    return settings.model_copy(update={"heads": (spec,)})


def wait_until_ready(settings: Settings, pause: Callable[[float], None]) -> None:
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
        pause(0.1)
        if deadline == math.inf and time.monotonic() - checked > 1:
            checked = time.monotonic()
            if _all_run(calls.applications(settings)):
                deadline = checked + READY_S
    raise RuntimeError(f"the service did not become ready: {reason}")


def _all_run(names: Sequence[str]) -> bool:
    """Return whether Serve reports all applications as running.

    A call costs the controller 10 ms and this process 30. Raises RuntimeError with the last line of
    the traceback in Serve's message if an application cannot start.
    """
    from ray import serve

    applications = serve.status().applications
    for name, application in applications.items():
        if application.status == "DEPLOY_FAILED":
            errors = [deployment.message for deployment in application.deployments.values()]
            cause = (errors or [application.message])[0].strip().splitlines()[-1:]
            raise RuntimeError(
                f"the application {name} did not start: {''.join(cause)}. The log above says more; "
                "samclip doctor, with the same settings, names the usual reasons"
            )
    return all(name in applications and applications[name].status == "RUNNING" for name in names)
