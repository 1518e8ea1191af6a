"""The table that maps the errors of ``samclip_core`` to gRPC codes and HTTP statuses, and back.

An error outside the table is a fault of the service: the caller gets only a request id.
"""

from dataclasses import dataclass

from grpc import StatusCode

from samclip_core import errors


@dataclass(frozen=True)
class Status:
    """The gRPC code and HTTP status of one class of errors."""

    code: StatusCode
    http: int
    title: str
    retry_after_s: int | None = None


TABLE: dict[type[errors.SamClipError], Status] = {
    errors.ImageTooLarge: Status(StatusCode.INVALID_ARGUMENT, 413, "image too large"),
    errors.UnsupportedImage: Status(StatusCode.INVALID_ARGUMENT, 415, "unsupported image"),
    errors.InvalidImage: Status(StatusCode.INVALID_ARGUMENT, 400, "invalid image"),
    errors.InvalidPrompt: Status(StatusCode.INVALID_ARGUMENT, 400, "invalid prompt"),
    errors.InvalidLabels: Status(StatusCode.INVALID_ARGUMENT, 400, "invalid labels"),
    errors.InvalidRequest: Status(StatusCode.INVALID_ARGUMENT, 400, "invalid request"),
    errors.KeyUnknown: Status(StatusCode.FAILED_PRECONDITION, 409, "image key unknown"),
    errors.NotFound: Status(StatusCode.NOT_FOUND, 404, "not found"),
    errors.Unauthenticated: Status(StatusCode.UNAUTHENTICATED, 401, "not authenticated"),
    errors.PermissionDenied: Status(StatusCode.PERMISSION_DENIED, 403, "permission denied"),
    errors.Overloaded: Status(StatusCode.RESOURCE_EXHAUSTED, 429, "overloaded", 1),
    errors.DeadlineExceeded: Status(StatusCode.DEADLINE_EXCEEDED, 504, "deadline exceeded"),
    errors.RequestTooSlow: Status(StatusCode.DEADLINE_EXCEEDED, 408, "request too slow"),
    errors.Unavailable: Status(StatusCode.UNAVAILABLE, 503, "unavailable", 1),
    errors.AnotherCheckpoint: Status(StatusCode.ABORTED, 503, "another checkpoint", 1),
}
INTERNAL = Status(StatusCode.INTERNAL, 500, "internal error")

MAX_MESSAGE = 2000  # a status travels in HTTP/2 trailers, which gRPC limits to 8 KiB in all


@dataclass(frozen=True)
class Failure:
    """An error as the caller sees it. ``kind`` is the name of its class, empty if internal."""

    status: Status
    kind: str
    message: str
    request_id: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an HTTP response with this error: when to try again, if that may help."""
        later = self.status.retry_after_s
        return {"retry-after": str(later)} if later else {}


def describe(error: BaseException, request_id: str) -> Failure:
    for kind in type(error).__mro__:
        if kind in TABLE:
            return Failure(TABLE[kind], kind.__name__, str(error)[:MAX_MESSAGE], request_id)
    return Failure(INTERNAL, "", f"internal error; request id {request_id}", request_id)


def rebuild(code: StatusCode, kind: str, message: str) -> Exception:
    """Return the error that another service described, so that it passes through unchanged.

    ``kind`` is the other side's ``Failure.kind``. If it is missing, as in answers of proxies and
    other implementations, the first class with that code is used.
    """
    fits = [error for error, status in TABLE.items() if status.code is code]
    for error in fits:
        if error.__name__ == kind:
            return error(message)
    if code is StatusCode.INVALID_ARGUMENT:
        return errors.InvalidRequest(message)
    return fits[0](message) if fits else RuntimeError(f"{code.name}: {message}")
