"""Exceptions that calls to the service raise: ``ServiceError``, and one class per status."""

import re

import grpc

from samclip.values.text import plain as plain


class ServiceError(Exception):
    """A failed call, with its gRPC status ``code``, ``message`` and ``request_id``.

    The id is empty if the request has not reached the service. ``retry_after_s``: when the same
    request may succeed, if a service with too much to do, or not up yet, has refused it.
    """

    retry_after_s: float | None = None

    def __init__(self, code: grpc.StatusCode, message: str, request_id: str) -> None:
        super().__init__(code, message, request_id)
        self.code, self.message, self.request_id = code, message, request_id

    def __str__(self) -> str:
        request = f", request {self.request_id}" if self.request_id else ""
        return plain(f"{self.message} ({self.code.name}{request})")


class InvalidArgument(ServiceError):
    """The request is invalid: a broken image, a point outside the image, no labels."""


class KeyUnknown(ServiceError):
    """The service does not have the image of this key cached: send the image."""


class NotFound(ServiceError):
    """The collection, or the id in a collection, does not exist."""


class Unauthenticated(ServiceError):
    """The API key is missing or wrong."""


class PermissionDenied(ServiceError):
    """The API key lacks the scope that the request requires."""


class Overloaded(ServiceError):
    """The service is overloaded, a limit of the API key is reached, or a message is too large."""


class DeadlineExceeded(ServiceError):
    """The client's deadline passed before the reply arrived."""


class Unavailable(ServiceError):
    """The service cannot be reached at this address."""


class InternalError(ServiceError):
    """Any other error; the service's log has the details under the request id."""


BY_CODE: dict[grpc.StatusCode, type[ServiceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: KeyUnknown,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}


_WEB_SERVER = "a web server answers at this address: name the service's gRPC port, by default 9000"
_TLS = "the connection was closed: if the service requires TLS, connect with it (tls)"
PLAIN = {
    "Deadline Exceeded": "no answer in time: allow more with timeout",
    "Received http2 header with status: 404": _WEB_SERVER,
}
"""What errors that gRPC itself words mean."""
_UNREACHED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")
_CAUSES = {
    "Failed parsing HTTP/2": _WEB_SERVER,
    "WRONG_VERSION_NUMBER": "the service answers without TLS: connect without it",
    "CERTIFICATE_VERIFY_FAILED": (
        "the certificate is not trusted: name its CA, and the host as the certificate does"
    ),
    "Socket closed": _TLS,
    "Connection reset by peer": _TLS,
}
"""What parts of gRPC's reasons for a failed connection mean."""
_REASON = re.compile(r"([^:\]]+)\]?$")


def from_rpc(error: grpc.RpcError, request_id: str, address: str) -> ServiceError:
    """Convert a gRPC error; a request id sent by the service takes precedence."""
    code = error.code()
    trailing: dict[str, str] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    request_id = str(trailing.get("x-request-id", request_id))
    details = error.details() or code.name
    if details.startswith(_UNREACHED):
        return Unavailable(code, _unreached(details, address), "")
    made = BY_CODE.get(code, InternalError)(code, PLAIN.get(details, details), request_id)
    later = isinstance(made, Overloaded | Unavailable | DeadlineExceeded)
    if later and details not in PLAIN and "message larger than max" not in details:
        made.retry_after_s = _seconds(str(trailing.get("retry-after", "")))
    return made


def _seconds(text: str) -> float:
    """Return the value of Retry-After, at most an hour; a second if it is missing, or a date."""
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() else 1.0


def _unreached(details: str, address: str) -> str:
    for part, cause in _CAUSES.items():
        if part in details:
            return f"{address}: {cause}"
    reason = _REASON.search(details)
    return (
        f"no service answers at {address} ({reason[1].strip() if reason else details}). Start one "
        "(samclip serve), or name the gRPC address of one: HOST:PORT, by default port 9000"
    )
