"""The embeddings of labelled pictures, which the public client asks a service for.

N pictures, or boxes in them; D width.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from samclip import Client, Photo, ServiceError
from samclip.cli import answers
from samclip.errors import plain
from samclip.images import Source
from samclip.many_photos import REFUSALS, reason
from samclip.patience import each, patiently
from samclip.types import Box, Model

from samclip_core.answers.areas import Area, embed_areas
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures
from services.probe.labelled import Picture

BOXES_AT_ONCE = 64
TEXT = "a photo of a {}"
"""What a class of a collection is compared as; the service puts names of other classes into the
checkpoint's own sentences."""
_PIXELS_PER_CELL = 16
"""The side of the model's frame is not in a reply. Another one moves the border by less than a
pixel of the frame."""


class Labelled(NamedTuple):
    """A labelled picture, or a box in one. ``key`` is that of its file, or of its embedding."""

    source: Source
    key: str
    label: str
    box: Box | None
    vector_D: NDArray[np.float32]
    zero_shot: str  # the best of the classes as texts


@dataclass(frozen=True)
class Encoded:
    """The parts, the model that encoded them, and why others have no embedding, by their names."""

    parts: Sequence[Labelled]
    model: Model
    errors: dict[str, str]

    @property
    def vectors_ND(self) -> NDArray[np.float32]:
        """The embeddings, of length 1."""
        return np.stack([part.vector_D for part in self.parts])


def encode(
    client: Client, pictures: Sequence[Picture], classes: Sequence[str], at_once: int
) -> Encoded:
    """Return the embeddings of pictures, and the class that a text describes best.

    The client has had a reply, whose checkpoint encodes all. Raises ServiceError if the service is
    away, and ValueError if no picture has an embedding, or another checkpoint answers.
    """
    parts, errors, model = list[Labelled](), dict[str, str](), client.model
    assert model is not None
    if pictures[0].vector_D is not None:
        return Encoded([*_stored(client, pictures, classes)], model, errors)

    def photo_of(picture: Picture) -> tuple[Photo, Picture]:
        return client.image(answers.read(picture.source)), picture

    with answers.shown("encoding", len(pictures)) as advance:
        for picture, future in each(
            pictures, lambda given: [*_parts(*given, classes, model.squash)], at_once, photo_of
        ):
            try:
                parts += future.result()
            except REFUSALS:
                raise
            except (ServiceError, OSError, ValueError) as error:
                name = picture.source.name
                errors[name] = reason(name, error)
                print(plain(f"samclip: {name}: {errors[name]}"), file=sys.stderr)
            if client.model and client.model.digest != model.digest:
                raise ValueError("the service changed its checkpoint: run the command again")
            advance(1)
    if not parts:
        raise ValueError(f"none of {len(pictures)} pictures has an embedding")
    return Encoded(parts, model, errors)


def _stored(
    client: Client, pictures: Sequence[Picture], classes: Sequence[str]
) -> Iterator[Labelled]:
    """Yield the pictures of a collection. Raises ValueError for embeddings that are not finite."""
    texts = [TEXT.format(name) for name in classes]
    text_CD = patiently(lambda: client.embed_text(texts))
    for picture in pictures:
        assert picture.vector_D is not None
        vector_D, (label,) = _finite(picture.vector_D), picture.labels
        best = classes[int(np.argmax(text_CD @ vector_D))]
        key = sha256(vector_D.tobytes()).hexdigest()
        yield Labelled(picture.source, key, label, None, vector_D, best)


def _parts(
    photo: Photo, picture: Picture, classes: Sequence[str], squash: bool
) -> Iterator[Labelled]:
    """Yield a picture, or its boxes. Raises ValueError for embeddings that are not finite."""
    source = picture.source
    if not picture.boxes:
        vector_D = _finite(photo.embed())
        best = photo.classify(classes, top_k=1)[0].label
        yield Labelled(source, photo.key, picture.labels[0], None, vector_D, best)
        return
    dense_Dhw = photo.features("clip_dense")["clip_dense"]
    assert photo.info is not None
    size = dense_Dhw.shape[-1] * _PIXELS_PER_CELL
    geometry = Geometry(photo.info.height, photo.info.width, size, squash)
    features = ImageFeatures(geometry, clip_dense_Dhw=dense_Dhw)
    inside = [
        (label, clipped)
        for label, box in zip(picture.labels, picture.boxes, strict=True)
        if (clipped := _clip(box, geometry))
    ]
    for start in range(0, len(inside), BOXES_AT_ONCE):
        several = inside[start : start + BOXES_AT_ONCE]
        boxes = [box for _, box in several]
        vectors = embed_areas(features, map(Area, boxes))
        rankings = photo.classify_areas(classes, boxes=boxes, top_k=1)
        for (label, box), vector_D, ranking in zip(several, vectors, rankings, strict=True):
            yield Labelled(source, photo.key, label, box, _finite(vector_D), ranking[0].label)


def _clip(box: Box, geometry: Geometry) -> Box | None:
    """Return the part of a box inside the picture; None if there is none."""
    x_min, y_min = max(box[0], 0.0), max(box[1], 0.0)
    x_max, y_max = min(box[2], float(geometry.width)), min(box[3], float(geometry.height))
    return (x_min, y_min, x_max, y_max) if x_min < x_max and y_min < y_max else None


def _finite(vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(vector_D).all():
        raise ValueError("its embedding is not finite")
    return vector_D
