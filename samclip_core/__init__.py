"""SAM-CLIP as a plain library: one image encoder for classification and segmentation.

Public names are imported on first use, so importing this package is cheap and does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samclip_core.answers.areas import Area
    from samclip_core.answers.head import Head
    from samclip_core.answers.sam_head import SamHead
    from samclip_core.config import SamClipConfig
    from samclip_core.encoder import Prepared
    from samclip_core.errors import CheckpointError, SamClipError
    from samclip_core.geometry import Geometry
    from samclip_core.io.image import ImageLimits
    from samclip_core.model import SamClip
    from samclip_core.types import (
        EverythingMask,
        HeatMap,
        ImageFeatures,
        MaskSet,
        Prompt,
        Region,
        Score,
        SemanticMap,
    )

__all__ = [
    "Area",
    "CheckpointError",
    "EverythingMask",
    "Geometry",
    "Head",
    "HeatMap",
    "ImageFeatures",
    "ImageLimits",
    "MaskSet",
    "Prepared",
    "Prompt",
    "Region",
    "SamClip",
    "SamClipConfig",
    "SamClipError",
    "SamHead",
    "Score",
    "SemanticMap",
]
_HOMES = (
    *("errors", "geometry", "config", "types", "io.image"),
    *("answers.areas", "answers.head", "answers.sam_head", "encoder", "model"),
)
"""Where the public names are, the modules that import least first."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (import_module(f"{__name__}.{home}") for home in _HOMES)
    return next(getattr(home, name) for home in homes if hasattr(home, name))
