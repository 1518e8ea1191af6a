"""A small picture of one shade."""

import io

from PIL import Image

WIDTH, HEIGHT = 30, 20


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), shade).save(buffer, "PNG")
    return buffer.getvalue()
