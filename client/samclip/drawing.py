"""Drawing of replies over photographs, with Pillow only."""

import colorsys
import io
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samclip.images import read_pixels
from samclip.mask import SHOWN_PIXELS
from samclip.types import HeatMap, Mask, Panoptic, Score, SemanticMap

Colour = tuple[int, int, int]
MOST_NAMES = 12  # in a legend
_BACKGROUND: Colour = (32, 32, 32)
_HEAT: list[Colour] = [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]
HEAT_256_3 = np.stack(
    [
        np.interp(np.arange(256), np.linspace(0, 255, len(_HEAT)), band)
        for band in np.transpose(_HEAT)
    ],
    axis=1,
).astype(np.uint8)
"""The colour of each level of a heat map: black, violet, red, orange, light yellow."""


def colour(index: int) -> Colour:
    """Return the colour of an index: golden-ratio steps in hue from cyan, so neighbours differ."""
    hue, value = (0.52 + index * 0.618034) % 1.0, 1.0 if index % 2 == 0 else 0.8
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return (int(red * 255), int(green * 255), int(blue * 255))


def mask_image(mask_HW: np.ndarray) -> Image.Image:
    """Return a mask as an image: the object white, the rest black."""
    return Image.fromarray(mask_HW.astype(np.uint8) * 255)


def shown(encoded: bytes, answer: Any) -> Image.Image:
    """Return a photograph's file with an answer drawn, at most ``SHOWN_PIXELS`` on a side."""
    pixels_HW3 = read_pixels(encoded)
    step = max(pixels_HW3.shape) // SHOWN_PIXELS
    match answer:
        case [Mask(), *_] if step > 1:
            pixels_HW3 = np.asarray(Image.fromarray(pixels_HW3).reduce(step))
            answer = [mask.thinned(step) for mask in answer]
    picture = draw_answer(pixels_HW3, answer)
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return picture


def draw_answer(image_HW3: np.ndarray, answer: Any) -> Image.Image:
    """Return the photograph with an answer about it drawn, by the answer's type; others are not."""
    match answer:
        case SemanticMap():
            return draw_semantic(image_HW3, answer)
        case HeatMap():
            return draw_heat(image_HW3, answer)
        case Panoptic():
            return draw_panoptic(image_HW3, answer)
        case Mask():
            return draw_named(image_HW3, [answer])
        case [Mask(), *_]:
            return draw_named(image_HW3, answer)
        case [Score(), *_]:
            scores = [(f"{s.label}  {s.score:.0%}", colour(i)) for i, s in enumerate(answer)]
            return with_legend(Image.fromarray(image_HW3), scores[:MOST_NAMES])
    return Image.fromarray(image_HW3)


def draw_named(image_HW3: np.ndarray, masks: Sequence[Mask]) -> Image.Image:
    """Return the photograph with masks, the smallest on top, and the labels of the largest."""
    masks = sorted(masks, key=lambda mask: mask.area)
    names = [
        (f"{mask.label}  {mask.label_score:.2f}", colour(index))
        for index, mask in enumerate(masks)
        if mask.label
    ]
    return with_legend(draw_masks(image_HW3, masks), names[-MOST_NAMES:])


def draw_panoptic(image_HW3: np.ndarray, found: Panoptic) -> Image.Image:
    """Return the photograph with each segment tinted, and the labels of the largest below."""
    canvas_HW3 = image_HW3.copy()
    for index, segment in enumerate(found.segments):
        _tint(canvas_HW3, found.ids == segment.id, colour(index))
    names = [(s.label, colour(index)) for index, s in enumerate(found.segments) if s.label]
    return with_legend(Image.fromarray(canvas_HW3), names[:MOST_NAMES])


def draw_masks(image_HW3: np.ndarray, masks: Sequence[Mask]) -> Image.Image:
    """Return the photograph with each mask tinted and outlined, the first mask on top."""
    canvas_HW3 = image_HW3.copy()
    for index in reversed(range(len(masks))):
        _tint(canvas_HW3, masks[index].array, colour(index))
    return Image.fromarray(canvas_HW3)


def draw_semantic(image_HW3: np.ndarray, found: SemanticMap) -> Image.Image:
    """Return the photograph with each label's pixels tinted, and a legend below."""
    canvas_HW3 = image_HW3.copy()
    entries = []
    for region in found.regions:
        index = found.labels.index(region.label)
        _tint(canvas_HW3, found.label_map == index, colour(index))
        share = region.area / found.label_map.size
        entries.append((f"{region.label}  {share:.0%}", colour(index)))
    return with_legend(Image.fromarray(canvas_HW3), entries)


def draw_heat(image_HW3: np.ndarray, found: HeatMap) -> Image.Image:
    """Return the photograph under the colours of a heat map, and its range below."""
    blended_HW3 = image_HW3 // 2 + HEAT_256_3[found.levels] // 2
    ends = [(f"{found.low:.3f}", 0), (f"{found.label}  {found.high:.3f}", 255)]
    entries = [(text, cast(Colour, tuple(HEAT_256_3[level].tolist()))) for text, level in ends]
    return with_legend(Image.fromarray(blended_HW3), entries)


def draw_prompts(
    image: Image.Image,
    points: Sequence[tuple[float, float]] = (),
    boxes: Sequence[tuple[float, float, float, float]] = (),
    negative: Sequence[tuple[float, float]] = (),
) -> Image.Image:
    """Draw prompts over an image: green points, red negative points, yellow boxes."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    line = max(2, max(image.size) // 250)
    for box in boxes:
        draw.rectangle(box, outline=(255, 221, 0), width=line)
    for dots, fill in ((points, (0, 230, 118)), (negative, (244, 67, 54))):
        for x, y in dots:
            draw.circle((x, y), 2.5 * line, fill=fill, outline="white", width=max(1, line // 2))
    return image


def with_legend(image: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """Return the image with a legend below: a coloured square and a text per entry."""
    if not entries:
        return image
    size = max(14, image.width // 36)
    font = ImageFont.load_default(size)
    columns = max(1, image.width // (14 * size))
    rows = -(-len(entries) // columns)
    row_height = size * 3 // 2
    sheet = Image.new("RGB", (image.width, image.height + rows * row_height), _BACKGROUND)
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for position, (text, fill) in enumerate(entries):
        x = position % columns * (image.width // columns) + size // 2
        y = image.height + position // columns * row_height + size // 4
        draw.rectangle((x, y, x + size, y + size), fill=fill)
        draw.text((x + size * 3 // 2, y), text, fill="white", font=font)
    return sheet


def with_title(image: Image.Image, title: str) -> Image.Image:
    """Return the image with a line of text above it."""
    size = max(14, image.width // 30)
    sheet = Image.new("RGB", (image.width, image.height + size * 2), _BACKGROUND)
    sheet.paste(image, (0, size * 2))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(sheet).text((size // 2, size // 3), title, fill="white", font=font)
    return sheet


def jpeg(image: Image.Image) -> bytes:
    """Return a picture as a JPEG file of good quality."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def contact_sheet(images: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """Return one sheet of all images, each ``width`` wide, with rows as high as their tallest."""
    scaled = [image.resize((width, image.height * width // image.width)) for image in images]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), _BACKGROUND)
    for index, row in enumerate(rows):
        for column, image in enumerate(row):
            sheet.paste(image, (column * width, sum(heights[:index])))
    return sheet


def _tint(canvas_HW3: np.ndarray, mask_HW: np.ndarray, tint: Colour) -> None:
    """Tint the canvas in place: half opaque inside the mask, opaque on its outline."""
    y_N, x_N = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    if not len(y_N):
        return
    box = slice(y_N[0], y_N[-1] + 1), slice(x_N[0], x_N[-1] + 1)
    canvas_hw3, mask_hw = canvas_HW3[box], mask_HW[box]
    around = np.pad(mask_hw, 2)  # the outline is two pixels wide
    inner_hw = around[:-4, 2:-2] & around[4:, 2:-2] & around[2:-2, :-4] & around[2:-2, 4:]
    canvas_hw3[mask_hw] = canvas_hw3[mask_hw] // 2 + np.array(tint, np.uint8) // 2
    canvas_hw3[mask_hw & ~inner_hw] = tint
