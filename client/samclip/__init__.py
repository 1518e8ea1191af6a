"""Client for SAM-CLIP Serve.

client = samclip.Client("127.0.0.1:9000")
photo = client.image("dog.jpg")                      # hashed locally; uploaded once
photo.classify(["a dog", "a cat"])
photo.segment(points=[(120, 80)])                    # numpy bool masks
photo.semantic(["dog", "grass"], refine=True)
client.search("pets", text="a brown dog")
"""

from samclip.clicks import AsyncClicks, Clicks
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
from samclip.mask_list import Masks
from samclip.photo import AsyncPhoto, Photo
from samclip.photos import AsyncPhotos, Photos
from samclip.session import credentials
from samclip.types import (
    Collection,
    EverythingUpdate,
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
)

__version__ = "0.1.0"

__all__ = [
    "AsyncClicks",
    "AsyncClient",
    "AsyncPhoto",
    "AsyncPhotos",
    "Clicks",
    "Client",
    "Collection",
    "DeadlineExceeded",
    "EverythingUpdate",
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
    "ServiceError",
    "Unauthenticated",
    "Unavailable",
    "credentials",
]
