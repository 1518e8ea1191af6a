"""The exceptions that this project raises for its callers, as one tree.

Each message states what happened, what was expected and what to do. ``services.request.status``
maps these classes to gRPC and HTTP statuses.
"""

from samclip.values.text import plain as plain


class SamClipError(Exception):
    """The base class; never raised directly. Messages may quote other people's texts."""

    def __str__(self) -> str:
        return plain(super().__str__())


class InvalidRequest(SamClipError):
    """An invalid request: a retry of the same request cannot succeed."""


class InvalidImage(InvalidRequest):
    """Not an image, broken, animated, or with too many pixels."""


class ImageTooLarge(InvalidImage):
    """More encoded bytes than the limit."""


class UnsupportedImage(InvalidImage):
    """An image in an unsupported format."""


class InvalidPrompt(InvalidRequest):
    """A point outside the image, an inverted box, an empty or oversized prompt list."""


class InvalidLabels(InvalidRequest):
    """No labels, an empty label, or too many of them."""


class KeyUnknown(SamClipError):
    """An image key without a stored embedding."""


class NotFound(SamClipError):
    """A collection, or an id in a collection, that does not exist."""


class Unauthenticated(SamClipError):
    """No API key where one is needed, or a wrong one."""


class PermissionDenied(SamClipError):
    """A valid API key without the required scope."""


class Overloaded(SamClipError):
    """The queue is full."""


class DeadlineExceeded(SamClipError):
    """The caller's deadline passed before the work was done."""


class RequestTooSlow(DeadlineExceeded):
    """The body of the request did not arrive in time."""


class Unavailable(SamClipError):
    """A service that this one depends on does not answer."""


class AnotherCheckpoint(SamClipError):
    """The requested checkpoint is not the one being served."""


class CheckpointError(SamClipError):
    """A checkpoint that is missing, damaged, or of another kind."""


class HeadError(SamClipError):
    """A head of one's own that is missing, damaged, or made for another checkpoint."""
