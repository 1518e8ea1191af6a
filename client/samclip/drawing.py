"""Drawing over photographs, with Pillow only; answers draw themselves with it."""

import colorsys
import io
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from samclip.images import read_pixels

Colour = tuple[int, int, int]
MOST_NAMES = 12  # in a legend
SHOWN_PIXELS = 1024  # longest side in notebooks: a screen's, and their files stay small
SMOOTHED = 1 / 256  # of the longest side: corners of outlines that are rounder than this stay
LEAST_LEFT = 0.8  # of a mask, when it is smoothed: a smaller or thinner one is drawn as it is
_BACKGROUND: Colour = (32, 32, 32)
HEAT: list[Colour] = [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]
"""Colours of a heat map from the lowest level to the highest, in equal steps."""
_STOPS = np.linspace(0, 255, len(HEAT))
_BANDS = [np.interp(np.arange(256), _STOPS, band) for band in np.transpose(HEAT)]
HEAT_256_3 = np.rint(np.stack(_BANDS, axis=1)).astype(np.uint8)
"""The colour of each level of a heat map."""


def colour(index: int) -> Colour:
    """Return the colour of an index: golden-ratio steps in hue from cyan, so neighbours differ."""
    hue, value = (0.52 + index * 0.618034) % 1.0, 1.0 if index % 2 == 0 else 0.8
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return (round(red * 255), round(green * 255), round(blue * 255))


def mask_image(mask_HW: np.ndarray) -> Image.Image:
    """Return a mask as an image: the object white, the rest black."""
    return Image.fromarray(mask_HW.astype(np.uint8) * 255)


def shown(encoded: bytes, draw: Callable[..., Image.Image]) -> Image.Image:
    """Return a photograph's file as ``draw(pixels_HW3, step=…)`` draws it.

    It has at most ``SHOWN_PIXELS`` on a side; ``draw`` gets every ``step``-th pixel.
    """
    picture = Image.fromarray(read_pixels(encoded))
    step = max(1, max(picture.size) // SHOWN_PIXELS)
    drawn = draw(np.asarray(picture.reduce(step)), step=step)
    drawn.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return drawn


def tint(image_HW3: np.ndarray, layers: Iterable[tuple[np.ndarray, Colour]]) -> Image.Image:
    """Return the photograph with masks tinted and outlined in their colours, the last on top.

    Their outlines are smoothed: a mask is known in cells, which may be several pixels wide.
    """
    top_HW, fills = np.zeros(image_HW3.shape[:2], np.uint16), [(0, 0, 0)]
    for mask_HW, fill in layers:
        _place(top_HW, mask_HW, len(fills))
        fills.append(fill)
    around = np.pad(top_HW, 2)  # the outline is two pixels wide
    neighbours = (around[:-4, 2:-2], around[4:, 2:-2], around[2:-2, :-4], around[2:-2, 4:])
    edge_HW = np.any([beside_HW != top_HW for beside_HW in neighbours], axis=0)
    fill_HW3 = np.array(fills, np.uint8)[top_HW]
    tinted_HW3 = np.where(edge_HW[..., None], fill_HW3, image_HW3 // 2 + fill_HW3 // 2)
    return Image.fromarray(np.where(top_HW[..., None], tinted_HW3, image_HW3))


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


def _place(top_HW: np.ndarray, mask_HW: np.ndarray, number: int) -> None:
    """Write a number where a mask is, with a smooth outline."""
    y_N, x_N = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    if not len(y_N):
        return
    radius = SMOOTHED * max(top_HW.shape)
    low_y, low_x = (max(0, ends[0] - int(2 * radius) - 1) for ends in (y_N, x_N))
    box = slice(low_y, y_N[-1] + int(2 * radius) + 2), slice(low_x, x_N[-1] + int(2 * radius) + 2)
    inside = mask_HW[box]
    smooth = np.asarray(mask_image(inside).filter(ImageFilter.GaussianBlur(radius))) >= 128
    is_thin = np.count_nonzero(smooth) < LEAST_LEFT * np.count_nonzero(inside)
    top_HW[box][inside if is_thin else smooth] = number
