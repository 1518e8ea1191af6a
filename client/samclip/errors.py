"""What a call to the service can end in.

ServiceError
├── InvalidArgument    INVALID_ARGUMENT: the request can never succeed as it is
├── KeyUnknown         FAILED_PRECONDITION: the service no longer holds the image, send it
├── NotFound           NOT_FOUND: a collection, or an id in it
├── Unauthenticated    UNAUTHENTICATED: no API key, or a wrong one
├── PermissionDenied   PERMISSION_DENIED: an API key without the scope that this needs
├── Overloaded         RESOURCE_EXHAUSTED: the queue is full, or a message is too large
├── DeadlineExceeded   DEADLINE_EXCEEDED: the client's time is up
├── Unavailable        UNAVAILABLE: nobody answers at this address
└── InternalError      anything else
"""

import grpc


class ServiceError(Exception):
    """A call that failed: ``code`` (gRPC's status), ``message`` and ``request_id`` of it."""

    def __init__(self, code: grpc.StatusCode, message: str, request_id: str) -> None:
        super().__init__(code, message, request_id)
        self.code, self.message, self.request_id = code, message, request_id

    def __str__(self) -> str:
        return f"{self.message} ({self.code.name}, request {self.request_id})"


class InvalidArgument(ServiceError):
    """The request can never succeed as it is: a broken image, a point outside, no labels."""


class KeyUnknown(ServiceError):
    """The service no longer holds what this image key stands for: send the image."""


class NotFound(ServiceError):
    """A collection, or an id in a collection, that does not exist."""


class Unauthenticated(ServiceError):
    """No API key where one is needed, or a wrong one."""


class PermissionDenied(ServiceError):
    """An API key without the scope that this needs."""


class Overloaded(ServiceError):
    """Too much at once, of all or of this key, try again later; or a message too large."""


class DeadlineExceeded(ServiceError):
    """The client's deadline passed before the answer came."""


class Unavailable(ServiceError):
    """Nobody answers at this address."""


class InternalError(ServiceError):
    """Anything else; the request id finds it in the service's log."""


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


def from_rpc(error: grpc.RpcError, request_id: str) -> ServiceError:
    """The exception for gRPC's own; the service's request id, where it sent one, wins."""
    code = error.code()
    trailing: dict[str, str] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    request_id = str(trailing.get("x-request-id", request_id))
    return BY_CODE.get(code, InternalError)(code, error.details() or code.name, request_id)
