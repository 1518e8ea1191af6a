"""Every error that this project raises for a caller, as one tree.

    SamClipError
    ├── InvalidRequest            the request can never succeed as it is
    │   ├── InvalidImage          not an image, broken, animated, too many pixels
    │   │   ├── ImageTooLarge     more bytes than the limit
    │   │   └── UnsupportedImage  an image, but of a format that is not read here
    │   ├── InvalidPrompt         a point outside, an inverted box, nothing to segment
    │   └── InvalidLabels         no labels, an empty label, too many of them
    ├── KeyUnknown                an image key whose embedding is gone: send the image
    ├── NotFound                  a collection, or an id in it
    ├── Unauthenticated           no API key, or a wrong one
    ├── PermissionDenied          an API key without the scope that is needed
    ├── Overloaded                the queue is full: come back later
    ├── DeadlineExceeded          the caller's time is up
    │   └── RequestTooSlow        the body did not arrive in time
    ├── Unavailable               a service that this one depends on does not answer
    └── CheckpointError           a checkpoint that is missing, damaged or of another kind

The message says what happened, what was expected and what to do. ``services.request.status`` maps
these classes to gRPC and HTTP status.
"""


class SamClipError(Exception):
    """The root of the tree; never raised itself."""


class InvalidRequest(SamClipError):
    """The request can never succeed as it is."""


class InvalidImage(InvalidRequest):
    """Not an image, broken, animated, or with too many pixels."""


class ImageTooLarge(InvalidImage):
    """More encoded bytes than the limit."""


class UnsupportedImage(InvalidImage):
    """An image of a format that is not read here."""


class InvalidPrompt(InvalidRequest):
    """A point outside the image, an inverted box, an empty or oversized prompt list."""


class InvalidLabels(InvalidRequest):
    """No labels, an empty label, or too many of them."""


class KeyUnknown(SamClipError):
    """An image key whose embedding is no longer held."""


class NotFound(SamClipError):
    """A collection, or an id in a collection, that does not exist."""


class Unauthenticated(SamClipError):
    """No API key where one is needed, or a wrong one."""


class PermissionDenied(SamClipError):
    """An API key that is known, without the scope that this needs."""


class Overloaded(SamClipError):
    """The queue is full."""


class DeadlineExceeded(SamClipError):
    """The caller's deadline passed before the work was done."""


class RequestTooSlow(DeadlineExceeded):
    """The body of the request did not arrive in time."""


class Unavailable(SamClipError):
    """A service that this one depends on does not answer."""


class AnotherCheckpoint(SamClipError):
    """The checkpoint that was asked for is not the one that is served."""


class CheckpointError(SamClipError):
    """A checkpoint that is missing, damaged, or of another kind."""
