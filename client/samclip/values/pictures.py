"""What a picture's file is called, its key, and which way up it is."""

import hashlib

from PIL import ExifTags, Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""File name suffixes of the formats that are read."""
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_key(encoded: bytes) -> str:
    """Return an image's key: lower-case hex sha256 of the encoded bytes."""
    return hashlib.sha256(encoded).hexdigest()


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn an image upright, by its EXIF orientation, before its pixels are read."""
    try:
        # The override for PNG would first read to the end of the file.
        return _TURNS.get(int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)))
    except Exception:  # a parser may raise anything on damaged metadata
        return None
