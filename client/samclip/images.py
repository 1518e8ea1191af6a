"""Any image that a caller may hold → the file that travels."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def encode_image(source: ImageSource) -> bytes:
    """The bytes of a JPEG, PNG or WebP file: read, passed on as they are, or written as PNG.

    source: a path, a file's bytes, a Pillow image, or uint8 H×W (grey) or H×W×3 (RGB).
    Raises OSError for a path that cannot be read, ValueError for an empty file, TypeError for any
    other kind of source.
    """
    if isinstance(source, str | os.PathLike):
        source = Path(source).read_bytes()
    if isinstance(source, bytes):
        if not source:
            raise ValueError("the file is empty: expected a JPEG, PNG or WebP file")
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise TypeError(f"an image array is uint8 H×W or H×W×3, not {source.dtype}")
        source = Image.fromarray(source)
    if not isinstance(source, Image.Image):
        raise TypeError(
            f"an image is a path, bytes, a Pillow image or an array, not {type(source).__name__}"
        )
    buffer = io.BytesIO()
    source.save(buffer, "PNG", compress_level=1)  # lossless, and quick
    return buffer.getvalue()


def image_key(encoded: bytes) -> str:
    """The service's name for an image: lower-case hex sha256 of the encoded bytes."""
    return hashlib.sha256(encoded).hexdigest()
