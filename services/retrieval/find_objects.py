"""The program that finds the objects of an image and its tiles, as a collection stores them."""

from dataclasses import dataclass

from samclip_core.answers import stored_objects as objects
from samclip_core.answers.request import Output, Request
from samclip_core.answers.steps import Steps, Terms, gathered
from samclip_core.answers.tiles import NO_TILES, PlacedMask, Tiling, encodings, of_everything
from samclip_core.config import SamClipConfig
from samclip_core.geometry import Crop


@dataclass(frozen=True)
class PackedObjects(Request[bytes]):
    """Which objects does an image have, packed? Of a thing in several tiles, the best mask."""

    tiling: Tiling = NO_TILES

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return ("REGIONS",)

    def program(self, config: SamClipConfig, terms: Terms) -> Steps[bytes]:
        encoding, dimension = self.encoding(config), config.text_dim
        whole = yield encoding
        yield None
        packed = objects.pack(whole.regions, whole.geometry)
        if not (crops := self.tiling.crops(whole.geometry)):
            return packed
        parts: dict[Crop | None, bytes] = {None: packed}
        for crop, of_tile in encodings(crops, encoding):
            tile = yield of_tile
            parts[crop] = objects.pack(tile.regions, tile.geometry, crop)
        kept = list[PlacedMask]()
        for part, packed in parts.items():
            found = yield from gathered(objects.placed(packed, dimension, part))
            kept = of_everything([*kept, *found])
            yield None
        return objects.merge(parts, kept, dimension)
