"""A photograph's file: its name and key, the requests that carry it, and its picture."""

import copy
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
from PIL import Image

from samclip import drawing, wire
from samclip.images import ImageSource, encode_image, image_key
from samclip.masks import Mask, Masks, within
from samclip.transport import Session
from samclip.types import Example, HeatMap, ImageInfo, Panoptic, Score, SemanticMap
from samclip.v1 import samclip_pb2 as pb

Answer = TypeVar("Answer")
Slot = tuple[pb.Image, str, bytes]
"""An image of a request, with its key and file."""


class PhotoFile:
    """An image: its name, its key, its encoded file, and the info from the latest reply.

    ``name`` is the path or address that it was made from, or empty.
    """

    def __init__(self, session: Session, source: ImageSource = b"", *, key: str = "") -> None:
        self.name = str(source) if isinstance(source, str | os.PathLike) else ""
        self.encoded = b"" if key else encode_image(source)
        self.key = key or image_key(self.encoded)
        self.info: ImageInfo | None = None
        self._latest: Any = None
        self._session = session

    def asked(self, session: Session) -> Self:
        """Return this photograph for the requests of another session."""
        if session is self._session:
            return self
        made = copy.copy(self)
        made._session, made.info, made._latest = session, None, None
        return made

    def __repr__(self) -> str:
        said = [repr(self.name)] if self.name else []
        said += [f"{self.info.width}×{self.info.height}"] if self.info else []
        said += [f"{len(self.encoded):,} bytes"] if self.encoded else []
        return f"{type(self).__name__}({', '.join([*said, f'key {self.key[:12]}…'])})"

    def show(self, answer: Any = None) -> Image.Image:
        """Return the photograph with an answer drawn over it, which a notebook displays.

        answer: masks, scores, a semantic map, a panoptic picture, a heat map, or that of ``ask``,
        whose masks are drawn; None means the latest one. The picture has at most 1,024 pixels on
        its longest side. Raises ValueError if the photograph was made by ``by_key``, TypeError for
        another kind of answer.

        >>> masks = photo.segment(text="a cat")
        >>> photo.show().save("answer.png")
        """
        if not self.encoded:
            raise ValueError("this photograph has only a key: make it with client.image to see it")
        latest = self._latest if answer is None else answer
        return drawing.shown(self.encoded, partial(draw_answer, latest))

    def _repr_jpeg_(self) -> bytes | None:
        """Return the picture that a notebook displays for the photograph itself."""
        return drawing.jpeg(self.show()) if self.encoded else None

    def _keep(self, answer: Answer) -> Answer:
        self._latest = answer
        return answer

    async def _ask(self, request: Any, others: Sequence[Slot] = ()) -> Any:
        own = request.image, self.key, self.encoded
        reply = await self._session.ask(request, [own, *others])
        self.info = wire.like(ImageInfo, reply.image)
        return reply

    def _example_of(self, example: Example) -> "PhotoFile":
        """Return the photograph of an example, by default this one."""
        if example.image is None:
            return self
        is_photo = isinstance(example.image, PhotoFile)
        return example.image if is_photo else PhotoFile(self._session, example.image)

    async def _classify(
        self,
        labels: Sequence[str],
        templates: Sequence[str],
        top_k: int,
        areas: Sequence[pb.Area] = (),
    ) -> list[list[Score]]:
        request = wire.request(
            pb.ClassifyRequest,
            labels=wire.texts(labels),
            templates=wire.texts(templates),
            top_k=top_k,
            areas=areas,
        )
        slot = request.images.add()
        reply = await self._session.ask(request, [(slot, self.key, self.encoded)])
        self.info = wire.like(ImageInfo, reply.results[0].image)
        return [[wire.like(Score, one) for one in result.scores] for result in reply.results]


def draw_answer(answer: Any, image_HW3: np.ndarray, step: int = 1) -> Image.Image:
    """Return the photograph with an answer about it drawn; None and an empty list draw nothing.

    step: the picture has every ``step``-th pixel of the photograph. Raises TypeError if the answer
    cannot be drawn.
    """
    match answer:
        case SemanticMap() | HeatMap() | Panoptic():
            return answer.draw(image_HW3, step)
        case Mask():
            return Masks([answer]).draw(image_HW3, step=step)
        case [Mask(), *_]:
            return Masks(answer).draw(image_HW3, step=step)
        case dict():
            return Masks(within(answer, Mask)).draw(image_HW3, step=step)
        case [Score(), *_]:
            scores = [
                (f"{score.label}  {score.score:.0%}", drawing.colour(number))
                for number, score in enumerate(answer[: drawing.MOST_NAMES])
            ]
            return drawing.with_legend(Image.fromarray(image_HW3), scores)
        case None | []:
            return Image.fromarray(image_HW3)
    raise TypeError(
        "expected masks, scores, a semantic map, a panoptic picture or a heat map, found "
        f"{type(answer).__name__}"
    )
