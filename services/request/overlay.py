"""Answers as pictures: labels or heat in colours, over the image if the request has it.

H W are pixels of the original image.
"""

from collections.abc import Callable, Mapping

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from samclip.drawing import HEAT_256_3, colour
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.image import ImageLimits, decode, encode_png
from samclip_core.io.masks import decode_label_map, read_png

OPACITY = 0.55
STRIP_ROWS = 128
"""Rows coloured at once: intermediates for a whole image of 64 megapixels would take gigabytes."""


def draw_labels(request: Message, response: Message) -> bytes:
    """Return a PNG of the original size: the labels' colours over the image."""
    assert isinstance(request, pb.SegmentTextRequest)
    assert isinstance(response, pb.SegmentTextResponse)
    palette_L3 = np.array([colour(index) for index in range(len(request.labels))], np.uint8)
    return _draw(request.image, decode_label_map(response.label_map_png), palette_L3)


def draw_heat(request: Message, response: Message) -> bytes:
    """Return a PNG of the original size: the heat map over the image, bright where it is high."""
    assert isinstance(request, pb.ExplainRequest)
    assert isinstance(response, pb.ExplainResponse)
    return _draw(request.image, read_png(response.heat_png), HEAT_256_3)


DRAWN: Mapping[str, Callable[[Message, Message], bytes]] = {
    "SegmentText": draw_labels,
    "Explain": draw_heat,
}
"""By rpc, the picture of an answer, from the request and the response.

If the request has only a key, there is no image to draw on: the PNG is then RGBA, transparent where
there is no label.
"""


def _draw(image: pb.Image, index_HW: NDArray[np.integer], palette_I3: NDArray[np.uint8]) -> bytes:
    if encoded := image.encoded:
        # The service has already decoded this file, so these limits cannot refuse it.
        picture_HWC = decode(encoded, ImageLimits(len(encoded), index_HW.size))
    else:
        picture_HWC = np.zeros((*index_HW.shape, 4), np.uint8)
    for top in range(0, len(picture_HWC), STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        _colour_strip(picture_HWC[rows], index_HW[rows], palette_I3)
    return encode_png(picture_HWC)


def _colour_strip(
    picture_HWC: NDArray[np.uint8], index_HW: NDArray[np.integer], palette_I3: NDArray[np.uint8]
) -> None:
    """Colour the pixels with an index in place: blended into RGB, or with alpha in RGBA."""
    inside_HW = index_HW >= 0
    colours_N3 = palette_I3[index_HW[inside_HW]]
    if picture_HWC.shape[-1] == 4:
        alpha_N1 = np.full((len(colours_N3), 1), round(255 * OPACITY), np.uint8)
        picture_HWC[inside_HW] = np.hstack([colours_N3, alpha_N1])
        return
    below_N3 = picture_HWC[inside_HW]
    blended_N3 = (1 - OPACITY) * below_N3 + OPACITY * colours_N3
    picture_HWC[inside_HW] = np.rint(blended_N3).astype(np.uint8)
