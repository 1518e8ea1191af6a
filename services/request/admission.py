"""Proof that a request came through the front door, and the address of the backbone behind it.

Other users of the machine, and other machines of a cluster, can reach Serve's ports, which answer
only requests with a secret (``services.front_door.inner_ports``). The front door removes its header
from incoming requests.
"""

import hmac
import os
from collections.abc import Mapping

from samclip_core.errors import Unavailable
from services.request.routes import MODULES
from services.settings import PREFIX, Settings

SECRET_HEADER = "x-samclip-front-door"
SECRET_VARIABLE = PREFIX + "FRONT_DOOR_SECRET"
REFUSAL = (
    "this port answers only what comes through the front door; use the service's public address"
)
GUARDED = set[str]()
"""The protocols, HTTP and gRPC, whose ports in this process ask for the secret."""


def admitted(headers: Mapping[str, str]) -> bool:
    """Return whether a request came through the front door, from its headers or gRPC metadata.

    Names are in lower case. Without a secret in the environment, no request is admitted.
    """
    secret = os.environ.get(SECRET_VARIABLE, "")
    shown = headers.get(SECRET_HEADER, "")
    return bool(secret) and hmac.compare_digest(shown.encode(), secret.encode())


def check_guard() -> None:
    """Raise Unavailable unless the ports of this replica ask for the secret.

    Serve checks the health of a replica once its ports are open, and stops it if that fails.
    """
    if len(GUARDED) < 2:
        raise Unavailable(
            "the ports of this replica do not ask for the front door's secret: start Serve with "
            "samclip serve, or with the variables of deploy/kuberay/base/cluster.env"
        )


def applications(settings: Settings) -> list[str]:
    """Return the applications that run here: all, except a backbone that runs elsewhere."""
    elsewhere = {"backbone"} if settings.backbone_address else set()
    return [name for name in MODULES if name not in elsewhere]


def backbone(settings: Settings) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the address of the backbone's gRPC service, and the metadata for calls to it.

    A local backbone is called at Serve's inner port, bypassing the front door.
    """
    if settings.backbone_address:
        key = (("x-api-key", settings.backbone_api_key),) if settings.backbone_api_key else ()
        return settings.backbone_address, key
    return inside(settings, "backbone")


def inside(settings: Settings, application: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the inner address of an application's gRPC service, and the metadata for calls."""
    metadata = (("application", application), (SECRET_HEADER, os.environ[SECRET_VARIABLE]))
    return f"127.0.0.1:{settings.inner_grpc_port}", metadata
