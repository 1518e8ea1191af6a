"""A semantic answer as a picture: each label in its colour, over the image where there is one.

H W are pixels of the original image.
"""

import colorsys
import io

import numpy as np
from google.protobuf.message import Message
from PIL import Image
from samclip.v1 import samclip_pb2 as pb

from samclip_core.image import ImageLimits, decode
from samclip_core.masks import decode_label_map

OPACITY = 0.55
GOLDEN = 0.618033988749895  # hues a golden section apart stay distinct however many there are


def colour(index: int) -> tuple[int, int, int]:
    """The colour of a label, by its index in the request."""
    red, green, blue = colorsys.hsv_to_rgb((0.03 + index * GOLDEN) % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(request: Message, response: Message) -> bytes:
    """Return a PNG of the original size; without the image where the request named only a key."""
    assert isinstance(request, pb.SegmentTextRequest)
    assert isinstance(response, pb.SegmentTextResponse)
    label_map_HW = decode_label_map(response.label_map_png)
    palette = np.array([colour(index) for index in range(len(request.labels))], np.uint8)
    colours_HW3 = palette[np.maximum(label_map_HW, 0)]
    alpha_HW = np.where(label_map_HW < 0, 0, round(255 * OPACITY)).astype(np.uint8)
    picture = Image.fromarray(np.dstack([colours_HW3, alpha_HW]))
    if encoded := request.image.encoded:
        # It was decoded before, so these limits cannot refuse it.
        original_HW3 = decode(encoded, ImageLimits(len(encoded), label_map_HW.size))
        below = Image.fromarray(original_HW3).convert("RGBA")
        picture = Image.alpha_composite(below, picture).convert("RGB")
    png = io.BytesIO()
    picture.save(png, "PNG", compress_level=1)
    return png.getvalue()
