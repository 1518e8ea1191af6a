"""Segment everything: the program of its answer, by the picture's regions or by a search."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from samclip_core.answers.areas import Namer
from samclip_core.answers.everything import Search, largest_first, of_regions, settings_of
from samclip_core.answers.request import Output, Request, for_masks, rows_of
from samclip_core.answers.steps import Round, Steps, Terms, gathered
from samclip_core.answers.tiles import (
    NO_TILES,
    PlacedMask,
    Tiling,
    check_tiles,
    encodings,
    of_everything,
    place,
)
from samclip_core.answers.vocabularies import labels_or_names
from samclip_core.config import SamClipConfig
from samclip_core.geometry import Crop, FloatArray
from samclip_core.types import EverythingMask, ImageFeatures


@dataclass(frozen=True)
class Everything(Request[list[EverythingMask]]):
    """Where is everything in a picture, and what is it, if labels or a vocabulary are given?

    ``points_per_side`` is that of the finest grid. Masks whose label has a smaller share than
    ``min_label_score`` stay without a name (None: the checkpoint's). The largest masks come first;
    if the rounds are ``followed``, there is no result. The regions of the picture answer the
    checkpoint's default, but not to a caller who follows the search of a picture without tiles.
    """

    points_per_side: int
    labels: Sequence[str] = ()
    vocabulary: str = ""
    min_label_score: float | None = None
    tiling: Tiling = NO_TILES
    followed: bool = False

    @property
    def names(self) -> Sequence[str]:
        """The labels, or the vocabulary's names; they may be none. Raises InvalidLabels."""
        return labels_or_names(self.labels, self.vocabulary)

    @property
    def texts(self) -> Sequence[str]:
        return self.names

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        if self.by_regions(config):
            return ("REGIONS",)
        return (*for_masks(config), *(("CLIP_DENSE",) if self.names else ()))

    def by_regions(self, config: SamClipConfig) -> bool:
        """Return whether the regions of the picture are the answer."""
        own_search = self.followed and not self.tiling.is_wanted
        return self.points_per_side == config.points_per_side and not own_search

    def program(self, config: SamClipConfig, terms: Terms) -> Steps[list[EverythingMask]]:
        check_tiles(self.tiling.tiles, self.tiling.most)
        encoding = self.encoding(config, self.asked)
        whole = yield encoding
        text_LD = yield from rows_of(self.asked)
        namer = self.namer(text_LD, config) if self.names else None
        crops = self.tiling.crops(whole.geometry)
        yield None
        every: Any  # either
        if not self.by_regions(config):
            every = Search(terms, settings_of(config), namer)
        elif crops or self.followed:
            every = _OfRegions(namer)
        else:
            return (yield from gathered(of_regions(whole, namer)))
        for number, (crop, of_tile) in enumerate(chain([(None, None)], encodings(crops, encoding))):
            part = _placed_in((yield of_tile), crop) if crop else whole
            for steps in every.rounds(part, self.points_per_side, crop):
                yield from steps
                progress = (number + every.progress) / (1 + len(crops))
                yield Round(progress, partial(getattr, every, "found"), every.named)
        if self.followed:
            return []
        found = every.found if self.by_regions(config) else largest_first(every.found)
        return (yield from gathered(map(every.named, found)))

    def namer(self, text_LD: FloatArray, config: SamClipConfig) -> Namer:
        """Return what names masks; ``text_LD`` has a row of length 1 for each of ``names``."""
        asked, default = self.min_label_score, config.fitted.min_label_score
        least = default if asked is None else asked
        return Namer(self.names, text_LD, config.logit_scale, least)


def _placed_in(features: ImageFeatures, crop: Crop) -> ImageFeatures:
    """Return a tile's features with the tile's own size: it may have been encoded in another."""
    return replace(features, geometry=features.geometry.of(crop))


class _OfRegions:
    """The regions of a picture and its tiles, which are named as they are added."""

    progress = 1.0

    def __init__(self, namer: Namer | None) -> None:
        self._namer, self._kept = namer, list[PlacedMask]()

    def rounds(self, part: ImageFeatures, _: int, crop: Crop | None) -> Iterator[Steps[None]]:
        yield self._add(part, crop)

    def _add(self, part: ImageFeatures, crop: Crop | None) -> Steps[None]:
        placed = yield from gathered(place(of_regions(part, self._namer), crop))
        self._kept = of_everything([*self._kept, *placed])

    @property
    def found(self) -> list[EverythingMask]:
        return [one.mask for one in self._kept]

    def named(self, one: EverythingMask) -> EverythingMask:
        return one
