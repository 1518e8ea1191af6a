"""Client for SAM-CLIP Serve.

>>> import samclip
>>> client = samclip.Client("127.0.0.1:9000")
>>> photo = client.image("cat.jpg")  # hashed here, uploaded once
>>> photo.classify(["a cat", "a dog"])[0].label
'a cat'
>>> (mask,) = photo.segment(points=[(200, 60)])
>>> mask.array.shape, mask.array.dtype
((300, 451), dtype('bool'))
>>> photo.semantic(["cat", "blanket"], refine=True).regions[0].label
'cat'
>>> client.index("pets", {"cat": photo}).indexed
1
>>> client.search("pets", text="a small animal")[0].id
'cat'
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samclip.client import AsyncClient, Client
    from samclip.errors import (
        DeadlineExceeded,
        InternalError,
        InvalidArgument,
        KeyUnknown,
        NotFound,
        Overloaded,
        PermissionDenied,
        ServiceError,
        Unauthenticated,
        Unavailable,
    )
    from samclip.heads import ServedHead
    from samclip.many_photos import AsyncPhotos, Photos
    from samclip.masks import Masks
    from samclip.photo import AsyncPhoto, Photo
    from samclip.transport import credentials
    from samclip.types import (
        Collection,
        Concept,
        EverythingUpdate,
        Example,
        HeatMap,
        Hit,
        ImageInfo,
        Indexed,
        ListedItem,
        Mask,
        Model,
        Panoptic,
        Prompt,
        Region,
        Score,
        Segment,
        SemanticMap,
        ServedModel,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncPhoto",
    "AsyncPhotos",
    "Client",
    "Collection",
    "Concept",
    "DeadlineExceeded",
    "EverythingUpdate",
    "Example",
    "HeatMap",
    "Hit",
    "ImageInfo",
    "Indexed",
    "InternalError",
    "InvalidArgument",
    "KeyUnknown",
    "ListedItem",
    "Mask",
    "Masks",
    "Model",
    "NotFound",
    "Overloaded",
    "Panoptic",
    "PermissionDenied",
    "Photo",
    "Photos",
    "Prompt",
    "Region",
    "Score",
    "Segment",
    "SemanticMap",
    "ServedHead",
    "ServedModel",
    "ServiceError",
    "Unauthenticated",
    "Unavailable",
    "credentials",
]
_HOMES = ("client", "errors", "heads", "many_photos", "masks", "photo", "transport", "types")


def __getattr__(name: str) -> Any:
    """Import the client when it is first used: ``samclip.values`` needs neither it nor gRPC."""
    if name in __all__:
        homes = (import_module(f"{__name__}.{home}") for home in _HOMES)
        return next(getattr(home, name) for home in homes if hasattr(home, name))
    if find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
