"""The names of Ray and of its servers that this service replaces: another Ray may lack them."""

from importlib.metadata import version
from pkgutil import resolve_name

from services.front_door import inner_haproxy

RAY = "2.60"
"""The minor version of Ray for which the replacements were written; pyproject.toml pins it."""
NAMES = (
    "ray.job_config:JobConfig._runtime_env_has_working_dir",
    "ray.serve._private.constants:RAY_SERVE_GRPC_MAX_MESSAGE_SIZE",
    "ray.serve._private.direct_ingress_http_util:ASGIDIReceiveProxy.queue",
    "ray.serve._private.grpc_util:gRPCGenericServer",
    "grpc.aio._server:Server.add_insecure_port",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_headers_complete",
)
"""What ``services.front_door.inner_ports`` and ``services.launch.serve`` replace or read."""
TEMPLATE = "ray.serve._private.haproxy_templates:HAPROXY_CONFIG_TEMPLATE"
"""What ``services.front_door.inner_haproxy`` changes: Serve's configuration of HAProxy."""


def check() -> None:
    """Raise RuntimeError if the installed Ray lacks a name, or a part of the template."""
    try:
        for name in NAMES:
            resolve_name(name)
        inner_haproxy.confined(resolve_name(TEMPLATE))
    except (ImportError, AttributeError, ValueError) as error:
        raise RuntimeError(
            f"Ray {version('ray')} is installed, but this service replaces parts of Ray {RAY} and "
            f"of its servers, and one is missing: {error}; run pip install 'ray[serve]=={RAY}.*'"
        ) from error
