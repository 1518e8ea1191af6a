"""Objects given as examples of others: each one's mean CLIP and SAM vector.

D width of the CLIP map, E width of the SAM embedding.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.areas import check_mask, mean_under_masks, mean_under_runs
from samclip_core.answers.request import NO_TEXTS, Output, Request, for_masks, of_part
from samclip_core.answers.steps import Decode, Steps, Terms
from samclip_core.answers.zero_shot import unit
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.io.image import Readable
from samclip_core.io.masks import Runs
from samclip_core.types import ImageFeatures, MaskSet, Prompt

MAX_EXAMPLES = 16
"""Most examples of one thing: each may be an image of its own that has to be encoded."""

Picture = Readable | ImageFeatures
"""An image, or the features of ``SamClip.encode``."""
Place = Prompt | Runs
"""An object in an image: a box or points in its pixels, or a mask of its size."""
MakePlace = Callable[[Geometry], Place]
"""Returns the object's place once the size of its image is known."""


@dataclass(frozen=True, eq=False)
class Example:
    """An object in an image, as an example of others, or of unwanted ones if ``negative``.

    ``image`` is None for the one that is searched, or else what the runner of a program encodes.
    """

    image: Any
    place: Place | MakePlace
    negative: bool = False


class Vectors(NamedTuple):
    """The means of the dense CLIP map and of the SAM embedding under a mask, each of length 1.

    ``area`` is the mask's share of its picture; 0 if unknown.
    """

    clip_D: NDArray[np.float32]
    sam_E: NDArray[np.float32]
    area: float = 0.0


def check_examples(negative: Iterable[bool]) -> None:
    """Raise InvalidPrompt unless there are 1 to ``MAX_EXAMPLES`` examples, not all negative."""
    flags = [*negative]
    if len(flags) > MAX_EXAMPLES:
        raise InvalidPrompt(f"{len(flags)} examples, at most {MAX_EXAMPLES}: give fewer")
    if all(flags):
        raise InvalidPrompt("no example of what is wanted: give at least one that is not negative")


def is_same(one: Any, other: Any) -> bool:
    """Return whether two images are the same file, path, array or features."""
    return _identity(one) == _identity(other)


def _identity(image: Any) -> Hashable:
    return (type(image), image) if isinstance(image, bytes | str | Path) else id(image)


@dataclass(frozen=True)
class ExampleVectors(Request[list[Vectors]]):
    """What are the vectors of objects in one image? ``places`` are keyed by their name in errors.

    A mask is used as it is; for a box or points, the SAM head is asked for the best mask.
    """

    places: Mapping[str, Place]

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return (*for_masks(config), "CLIP_DENSE")

    def check(self, geometry: Geometry) -> None:
        for name, place in self.places.items():
            with of_part(name):
                _check(place, geometry)

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[list[Vectors]]:
        """Return the vectors in the order of the places.

        Raises InvalidPrompt if the SAM head finds nothing at a place.
        """
        geometry = features.geometry
        maps = features.output("CLIP_DENSE"), features.output("SAM")
        in_frame = replace(features, geometry=geometry.model_frame)
        vectors = []
        for name, place in self.places.items():
            if isinstance(place, Runs):
                means = [mean_under_runs(geometry, map_Dss, place) for map_Dss in maps]
                area = place.area / (place.height * place.width)
                yield None
            else:
                prompt = place.in_model_frame(geometry)
                # A box is seldom ambiguous, and SAM's single mask fits it best.
                (answer,) = yield Decode(in_frame, [prompt], multimask=place.box is None)
                inside_ss = _best(answer, geometry, name)
                means = [
                    mean_under_masks(geometry, map_Dss, inside_ss[None])[0] for map_Dss in maps
                ]
                area = inside_ss.sum() / math.prod(geometry.grid(len(inside_ss)))
            clip_D, sam_E = map(unit, means)
            vectors.append(Vectors(clip_D, sam_E, float(area)))
        return vectors


def vectors_of(
    examples: Mapping[str, Example],
    searched: ImageFeatures | None,
    config: SamClipConfig,
    terms: Terms,
) -> Steps[dict[str, Vectors]]:
    """Return the vectors of examples by their names; an image that several share is encoded once.

    ``searched`` are the features for the image None. Raises InvalidPrompt and InvalidRequest, with
    the example's name.
    """
    by_image, found = dict[Hashable, list[str]](), dict[str, Vectors]()
    for name, example in examples.items():
        by_image.setdefault(_identity(example.image), []).append(name)
    for names in by_image.values():
        features, image = searched, examples[names[0]].image
        if image is not None:
            with of_part(names[0]):
                features = yield ExampleVectors({}).encoding(config, image=image)
        assert features is not None
        places = dict[str, Place]()
        for name in names:
            yield None
            place = examples[name].place
            places[name] = place(features.geometry) if callable(place) else place
        asked = ExampleVectors(places)
        asked.check(features.geometry)
        vectors = yield from asked.steps(features, NO_TEXTS, config, terms)
        found |= zip(names, vectors, strict=True)
    return {name: found[name] for name in examples}


def _check(place: Place, geometry: Geometry) -> None:
    if isinstance(place, Runs):
        check_mask(place, geometry)
        return
    if place.mask_input_hw is not None:
        raise InvalidPrompt("a mask_input is no place of an object: give its box, points or mask")
    if not place.points and place.box is None:
        raise InvalidPrompt("the place is empty: give a box, points or a mask")
    place.validate(geometry)


def _best(answer: MaskSet, geometry: Geometry, name: str) -> NDArray[np.bool_]:
    """Return the cells of the first mask that has any in the picture."""
    rows, columns = geometry.grid(answer.logits_Mhw.shape[-1])
    for inside_ss in answer.logits_Mhw > 0:
        inside_ss[rows:] = inside_ss[:, columns:] = False
        if inside_ss.any():
            return inside_ss
    raise InvalidPrompt(f"{name}: no object was found there: give its mask")
