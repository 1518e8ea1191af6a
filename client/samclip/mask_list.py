"""The masks of one answer."""

from typing import Any, SupportsIndex, overload

import numpy as np

from samclip import drawing
from samclip.mask import Mask


class Masks(list[Mask]):
    """A list of masks of one photograph, which a notebook displays over it."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> "Masks": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Mask | Masks":
        found = super().__getitem__(index)
        return Masks(found) if isinstance(found, list) else found

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``: boxes, masks, confidence, and class names if labelled.

        ``confidence`` is the label's score, or else the predicted IoU; ``class_id`` numbers the
        labels in order of appearance. Raises ModuleNotFoundError without ``pip install
        supervision``.

        >>> detections = photo.segment(text="a cat").to_supervision()
        >>> detections.mask.shape[1:], set(detections["class_name"].tolist())
        ((300, 451), {'a cat'})
        """
        try:
            from supervision import Detections
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            message = "to_supervision needs the package supervision: pip install supervision"
            raise ModuleNotFoundError(message, name="supervision") from None
        if not self:
            return Detections.empty()
        labels = [mask.label for mask in self]
        names = list(dict.fromkeys(labels))
        return Detections(
            xyxy=np.array([mask.box for mask in self], np.float32),
            mask=np.stack([mask._pixels() for mask in self]),
            confidence=np.array([mask.score for mask in self], np.float32),
            class_id=np.array([names.index(label) for label in labels]) if any(labels) else None,
            data={"class_name": np.array(labels)} if any(labels) else {},
        )

    def _repr_jpeg_(self) -> bytes | None:
        """Return the picture that a notebook displays, if the masks know their photograph."""
        photographs = {mask.photograph for mask in self}
        if len(photographs) != 1 or b"" in photographs:
            return None
        return drawing.jpeg(drawing.shown(photographs.pop(), self))
