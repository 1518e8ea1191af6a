"""Items with random vectors for collections, models and hostile texts."""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from samclip_core.answers import stored_objects as objects
from samclip_core.answers.zero_shot import unit
from samclip_core.geometry import Geometry
from samclip_core.io.masks import pixel_box
from samclip_core.regions import Regions, to_levels
from services.retrieval.query import Query
from services.retrieval.rows import Item

D = 8
MODEL, OTHER = "m" * 64, "n" * 64
HOSTILE = (
    "", " ", "\n", '"', "'", "\\", '\\"', '" or "" == "', "' in .pairs or 1", "}, {", ", ",
    "é", "\u2028", "𝄞", "a\0b", "a", '"a": "b"', ": ", ".pairs", "*", "true", "1", "{}", "x" * 5000,
    "-", "+", "(a", "[a",
)  # fmt: skip


def vector(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=D).astype(np.float32)
    return values / np.linalg.norm(values)


def items(*seeds: int) -> list[Item]:
    return [Item(f"id {seed}", vector(seed), {"seed": str(seed)}) for seed in seeds]


GEOMETRY = Geometry(48, 64, 64)
"""Of the pictures that the regions are of."""
SIDE = 16
"""Of their outlines, in cells."""


def regions(seed: int, count: int = 3) -> Regions:
    """Return regions with random vectors, each the inside of an ellipse."""
    random = np.random.default_rng(seed)
    y_16, x_16 = np.ogrid[0.5:16, 0.5:16]
    levels, boxes, areas = [], [], []
    for _ in range(count):
        (x, y), (width, height) = random.uniform(2, 10, 2), random.uniform(1.5, 6, 2)
        inside = 1 - ((x_16 - x) / width) ** 2 - ((y_16 - y) / height) ** 2
        levels.append(to_levels(4 * inside))
        mask_HW = GEOMETRY.logits_to_original(4 * inside) > 0
        boxes.append(pixel_box(mask_HW))
        areas.append(mask_HW.mean())
    means_RD = 0.9 * unit(random.normal(size=(count, D)))
    return Regions(
        levels_Rss=np.array(levels, np.int8).reshape(-1, 16, 16),
        predicted_iou_R=random.uniform(0.5, 1, count).astype(np.float32),
        stability_R=random.uniform(0.5, 1, count).astype(np.float32),
        box_R4=np.array(boxes, np.float32).reshape(-1, 4),
        area_R=np.array(areas, np.float32),
        clip_RD=means_RD.astype(np.float16),
        clip_mean_D=(means_RD.sum(axis=0) / max(count, 1)).astype(np.float16),
        sam_RE=np.ones((count, 1), np.float16),
    )


def with_objects(seed: int, id: str = "", count: int = 3) -> Item:
    """Return an item with so many objects."""
    packed = objects.pack(regions(seed, count), GEOMETRY)
    return Item(id or f"id {seed}", vector(seed), {"seed": str(seed)}, packed)


def made_up(
    count: int, side: int, geometry: Geometry, outlines: Sequence[bytes], dimension: int = D
) -> bytes:
    """Return objects of any sizes, whose numbers could be those of a model."""
    vector_D = np.resize(vector(1), dimension).astype("<f2").tobytes()
    return b"".join(
        (
            objects._HEADER.pack(
                1, geometry.squash, count, side, geometry.height, geometry.width, geometry.size
            ),
            (count + 1) * vector_D,
            np.full((count, 5), 0.5, "<f2").tobytes(),
            np.cumsum([*map(len, outlines)]).astype("<u4").tobytes(),
            *outlines,
        )
    )


def outline(kind: str, side: int, geometry: Geometry) -> bytes:
    """Return the compressed levels of a mask on the cells that a picture has."""
    rows, columns = objects._stored_cells(geometry, side)
    y_h1, x_1w = np.ogrid[:rows, :columns]
    levels_hw = {
        "constant": lambda: np.full((rows, columns), 9),
        "checkerboard": lambda: 18 * ((y_h1 + x_1w) % 2) - 9,
        "random": lambda: np.random.default_rng(1).integers(-127, 128, (rows, columns)),
    }[kind]()
    return zlib.compress(levels_hw.astype(np.int8).tobytes())


def best_objects(held: Iterable[Item], query: Query) -> dict[str, float]:
    """Return id → cosine of the nearest object of each item that a search may find, best first."""
    found = {
        item.id: float(max(objects.Objects(item.objects, D).vector_RD @ query.vector_D))
        for item in held
        if item.objects
        and item.id != query.exclude
        and (query.filter or {}).items() <= item.metadata.items()
    }
    accepted = {id: score for id, score in found.items() if score >= (query.min_score or -2)}
    return dict(sorted(accepted.items(), key=lambda pair: -pair[1]))
