"""A photograph on this side of the connection: its file, its key, and how it looks with answers."""

import os
from typing import Any, TypeVar

from PIL import Image

from samclip import drawing
from samclip.images import ImageSource, encode_image, image_key
from samclip.types import ImageInfo

Answer = TypeVar("Answer")


class Photograph:
    """An image: its name, its key, its encoded file, and the info from the latest reply.

    ``name`` is the path or address that it was made from, or empty.
    """

    def __init__(self, source: ImageSource = b"", *, key: str = "") -> None:
        self.name = str(source) if isinstance(source, str | os.PathLike) else ""
        self.encoded = b"" if key else encode_image(source)
        self.key = key or image_key(self.encoded)
        self.info: ImageInfo | None = None
        self._latest: Any = None

    def __repr__(self) -> str:
        size = f", {self.info.width}×{self.info.height}" if self.info else ""
        return f"{type(self).__name__}({self.key[:12]}…, {len(self.encoded):,} bytes{size})"

    def show(self, answer: Any = None) -> Image.Image:
        """Return the photograph with an answer drawn over it, which a notebook displays.

        answer: masks, scores, a semantic map, a panoptic picture or a heat map; None means the
        latest one. The picture has at most 1,024 pixels on its longest side. Raises ValueError if
        the photograph was made by ``by_key``.

        >>> masks = photo.segment(text="a cat")
        >>> photo.show().save("answer.png")
        """
        if not self.encoded:
            raise ValueError("this photograph has only a key: make it with client.image to see it")
        return drawing.shown(self.encoded, self._latest if answer is None else answer)

    def _repr_jpeg_(self) -> bytes | None:
        """Return the picture that a notebook displays for the photograph itself."""
        return drawing.jpeg(self.show()) if self.encoded else None

    def _keep(self, answer: Answer) -> Answer:
        self._latest = answer
        return answer
