"""What an annotator has drawn for one request: key points, a rectangle, brushes and polygons.

Label Studio gives positions in percent of the image's sides.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest
from samclip_core.io import masks
from samclip_core.io.brush import decode_brush

DRAWINGS = 8
"""Of the largest pictures in one request; of smaller ones, as many as have their pixels."""
MAX_STEPS = 2**18
"""Most pixels along the edges of all polygons of a request, each of about 0.2 microseconds: eight
times those around a picture of 64 megapixels."""


class Drawing:
    """The regions that were added, as one prompt and its label. The work for each is limited."""

    def __init__(self, most_pixels: int):
        self._prompt, self._label = pb.Prompt(), ""
        self._drawn_HW: masks.BoolMask | None = None
        self._most_pixels, self._pixels_left = most_pixels, DRAWINGS * most_pixels
        self._steps_left = MAX_STEPS

    def add(self, region: Any) -> None:
        """Add a region; one of another kind changes nothing. Raises InvalidRequest."""
        try:
            self._add(region)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            what = f"{error!r:.200}"
            raise InvalidRequest(f"a region of the context is not understood: {what}") from error

    def to_prompt(self) -> tuple[pb.Prompt, str]:
        """Return the prompt and the label. Raises InvalidRequest if nothing was added."""
        if self._drawn_HW is not None:
            height, width = self._drawn_HW.shape
            counts = masks.encode_rle(self._drawn_HW)
            self._prompt.mask.CopyFrom(pb.CocoRle(height=height, width=width, counts=counts))
        elif not self._prompt.points and not self._prompt.HasField("box"):
            raise InvalidRequest("the context has no key point, rectangle, brush or polygon")
        return self._prompt, self._label

    def _add(self, region: Mapping[str, Any]) -> None:
        value, kind = region["value"], region["type"]
        if not kind.startswith(("keypoint", "rectangle", "brush", "polygon")):
            return
        width, height = region["original_width"] / 100, region["original_height"] / 100
        self._label = next(iter(value.get(kind, ())), self._label)
        if not isinstance(self._label, str):
            raise TypeError(f"{kind} are not texts")
        if kind.startswith(("brush", "polygon")):
            self._unite(self._pixels(region))
            return
        x, y = value["x"] * width, value["y"] * height
        if kind.startswith("keypoint"):
            positive = region.get("is_positive", 1) in (1, "1", "true", "True")
            self._prompt.points.add(x=x, y=y, negative=not positive)
        else:
            x_max, y_max = x + value["width"] * width, y + value["height"] * height
            self._prompt.box.CopyFrom(pb.Box(x_min=x, y_min=y, x_max=x_max, y_max=y_max))

    def _unite(self, own_HW: masks.BoolMask) -> None:
        if self._drawn_HW is None:
            self._drawn_HW = own_HW
        elif own_HW.shape != self._drawn_HW.shape:
            raise ValueError("drawings of different sizes")
        else:
            np.logical_or(self._drawn_HW, own_HW, self._drawn_HW)

    def _pixels(self, region: Mapping[str, Any]) -> masks.BoolMask:
        """Return the pixels of a brush or a polygon. Raises ValueError, KeyError and TypeError."""
        height, width = (int(region[f"original_{side}"]) for side in ("height", "width"))
        most = min(self._most_pixels, self._pixels_left)
        if min(height, width) < 1 or height * width > most:
            raise ValueError(f"{width}×{height} pixels, expected 1 to {most:,}")
        self._pixels_left -= height * width
        if region["type"].startswith("brush"):
            packed = np.array(region["value"]["rle"], np.uint8)  # bytes() takes it for a length
            return decode_brush(packed.tobytes(), height, width)
        return self._filled(region["value"]["points"], height, width)

    def _filled(self, points: Any, height: int, width: int) -> masks.BoolMask:
        """Return the pixels whose centres are in a polygon, as exports in COCO's format have them.

        OpenCV would sort all edges in each row: hours for some polygons of a small request.
        """
        share_N2 = np.array(points, np.float64).reshape(-1, 2) / 100
        corner_N2 = share_N2.clip(-1, 2) * (width, height)
        if len(corner_N2) < 3 or not np.isfinite(corner_N2).all():
            raise ValueError("fewer than 3 points, or some that are not finite")
        edge_N2 = abs(corner_N2 - np.roll(corner_N2, 1, axis=0))
        self._steps_left -= int(edge_N2.max(axis=1).sum()) + len(edge_N2)
        if self._steps_left < 0:
            raise ValueError(f"the polygons have edges of more than {MAX_STEPS:,} pixels together")
        (rle,) = coco.frPyObjects([corner_N2.ravel().tolist()], height, width)
        return coco.decode(rle).astype(bool)
