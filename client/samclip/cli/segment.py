"""``samclip segment``, ``everything`` and ``semantic``: masks."""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from samclip import drawing
from samclip.cli import answers, usage
from samclip.cli.formats import Answer, Files, Row
from samclip.cli.usage import Command, UsageError
from samclip.client import Client
from samclip.errors import plain
from samclip.files import read_file
from samclip.images import read_pixels
from samclip.photo import Photo
from samclip.thumbnails import MOST_PIXELS
from samclip.types import Example, Mask, Masks, Panoptic, Segment, SemanticMap

FORMATS = (*usage.ROWS, "coco", "yolo")
MASK = ("mask", "label", "label_score", "predicted_iou", "stability_score", "area", "box", "thing")
REGION = ("label", "score", "area", "share", "box")
SEGMENT_OF_PANOPTIC = tuple(each.name for each in fields(Segment))
OUT = "write overlay.png, and mask-NNN.png per mask"


def _add_segment(parser: argparse.ArgumentParser) -> None:
    for name, help in (
        ("--point", "a pixel inside the object"),
        ("--negative", "a pixel outside the object"),
    ):
        parser.add_argument(
            name, type=float, nargs=2, action="append", default=[], metavar=("X", "Y"), help=help
        )
    usage.boxes(parser, "a box around the object; repeat for several, but once with --text")
    for name, dest, help in (
        ("--text", "text", "segment what this describes; repeat for several texts"),
        ("--not", "not_texts", "leave out what this describes better than --text"),
    ):
        parser.add_argument(
            name, dest=dest, action="append", default=[], metavar="PHRASE", help=help
        )
    parser.add_argument(
        "--like",
        action="append",
        default=[],
        metavar="FILE",
        help="find objects like the one in FILE that --box or --point mark; repeat --box for "
        "several objects",
    )
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="the object that this rough mask marks: a picture of the image's size, bright or "
        "opaque inside, or .npy",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="X",
        help="for --text and --like: least label_score, 0 to 1 (the checkpoint's)",
    )
    parser.add_argument(
        "--exclusive",
        action="store_true",
        help="masks of several --text do not overlap: a pixel belongs to the best label_score",
    )
    usage.tiles(parser)
    parser.add_argument(
        "--multimask",
        action="store_true",
        help="all masks per object, best first, instead of one: three of a point or a box, of a "
        "text or an example those that are nested or overlap",
    )
    usage.out(parser, OUT)
    parser.set_defaults(
        run=answers.over_images(_segment, _check, _tell_of_sizes),
        left_out=0,
        found=False,
        categories=lambda args: args.text,
        columns=lambda args: ("image", *MASK),
    )


def _check(args: argparse.Namespace) -> None:
    if not (args.point or args.negative or args.box or args.text or args.like or args.mask):
        raise UsageError(
            "segment needs a prompt: --point X Y, --box X0 Y0 X1 Y1, --text PHRASE, --like FILE or "
            "--mask FILE; samclip everything needs none and finds all objects"
        )
    if args.mask:
        if args.like or len(answers.expand(args.images)) > 1:
            raise UsageError("--mask marks an object in one image, without --like")
        args.mask = _read_mask(args.mask)
    if not args.like:
        return
    if len(args.like) > 1:
        raise UsageError("--like takes one image; a concept takes several: samclip concept --help")
    if args.negative or bool(args.box) == bool(args.point):
        raise UsageError("--like needs either --box or --point: where the object is in that image")
    args.like = answers.read(answers.one(*args.like))  # once for all images


def _segment(photo: Photo, args: argparse.Namespace) -> Answer:
    texts = {
        **{"text": args.text, "not_texts": args.not_texts, "min_score": args.min_score},
        **{"exclusive": args.exclusive, "tiles": args.tiles},
    }
    if not args.like:
        masks = photo.segment(
            args.point,
            negative=args.negative,
            boxes=args.box,
            mask=args.mask,
            multimask=args.multimask,
            **texts,
        )
    else:
        masks = photo.segment(like=_examples(args), **texts)
    args.found |= bool(masks)
    if not args.multimask:
        args.left_out += len(masks) - len(masks.things)
        masks = Masks(best for best, *_ in masks.things)
    return Answer(_rows(masks), masks, _draw_prompted(photo, masks, args))


def _tell_of_sizes(client: Client, args: argparse.Namespace) -> list[Row]:
    """Say on stderr that there are more masks than were written, or why none; return no rows."""
    if not args.found and (foreign := [text for text in args.text if _is_foreign(text)]):
        said = f"nothing was found for {foreign[0]!r}: the model has learned only English"
        print(plain(f"samclip: {said}"), file=sys.stderr)
    if args.left_out:
        print(
            f"samclip: --multimask also writes the masks of other sizes of these objects, "
            f"{args.left_out} more",
            file=sys.stderr,
        )
    return []


def _is_foreign(text: str) -> bool:
    """Return whether a text has letters that English does not use."""
    return any(letter.isalpha() and not letter.isascii() for letter in text)


def _read_mask(path: str) -> np.ndarray:
    """Return bool H×W of a mask's file, by its alpha if that varies. Raises OSError, ValueError."""
    file = io.BytesIO(read_file(path))
    try:
        return _mask_of(file, path.endswith(".npy"))
    except (TypeError, MemoryError, Image.DecompressionBombError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is no mask, a picture or an array of numbers") from error


def _mask_of(file: io.BytesIO, is_array: bool) -> np.ndarray:
    if is_array:
        return np.asarray(np.lib.format.read_array(file) > 0)
    with Image.open(file) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise Image.DecompressionBombError
        clear = "A" in picture.getbands() and picture.getchannel("A").getextrema() != (255, 255)
        levels_HW = np.asarray(picture.getchannel("A") if clear else picture.convert("L"))
    return np.asarray(levels_HW > levels_HW.max() / 2)


def _examples(args: argparse.Namespace) -> list[Example]:
    if args.point:
        return [Example(image=args.like, points=args.point)]
    return [Example(image=args.like, box=box) for box in args.box]


def _draw_prompted(photo: Photo, masks: Masks, args: argparse.Namespace) -> Files:
    picture = masks.draw(read_pixels(photo.encoded), names=False)
    if not args.like:
        picture = drawing.draw_prompts(picture, args.point, args.box, args.negative)
    yield "overlay.png", picture
    yield from mask_files(masks)


def _add_everything(parser: argparse.ArgumentParser) -> None:
    usage.texts(parser, "--labels", "label each object; a single value is split at commas")
    parser.add_argument(
        "--vocabulary",
        choices=["coco", "lvis"],
        default="",
        help="label each object with a name of this data set instead",
    )
    parser.add_argument(
        "--min-label-score",
        type=float,
        metavar="X",
        help="leave out labels whose share is smaller than this, 0 to 1 (the checkpoint's)",
    )
    parser.add_argument(
        "--points-per-side", type=int, default=0, metavar="N", help="size of the finest grid"
    )
    usage.tiles(parser)
    parser.add_argument(
        "--panoptic",
        action="store_true",
        help="one picture in COCO's panoptic format, with --out as PNG and JSON",
    )
    usage.out(parser, OUT)
    parser.set_defaults(
        run=answers.over_images(_everything, _check_panoptic),
        categories=_labels,
        columns=lambda args: ("image", *(SEGMENT_OF_PANOPTIC if args.panoptic else MASK)),
    )


def _labels(args: argparse.Namespace) -> list[str]:
    return usage.split(args.labels)


def _check_panoptic(args: argparse.Namespace) -> None:
    if args.panoptic and args.format in ("coco", "yolo"):
        raise UsageError(f"--panoptic has a format of its own: leave out --format {args.format}")


def _everything(photo: Photo, args: argparse.Namespace) -> Answer:
    asked: dict[str, Any] = {
        "vocabulary": args.vocabulary,
        "min_label_score": args.min_label_score,
        "points_per_side": args.points_per_side,
        "tiles": args.tiles,
    }
    if args.panoptic:
        return _panoptic(photo.panoptic(_labels(args), **asked), photo.name)
    masks = photo.everything(_labels(args), **asked)
    return Answer(_rows(masks), masks, _draw_everything(photo, masks))


def _draw_everything(photo: Photo, masks: Masks) -> Files:
    yield "overlay.png", masks.wholes.draw(read_pixels(photo.encoded), names=False)
    yield from mask_files(masks)


def _panoptic(found: Panoptic, name: str) -> Answer:
    """Answer with the picture and its JSON, as panopticapi reads them."""
    rows = [{**vars(segment), "bbox": list(segment.bbox)} for segment in found.segments]
    content = json.dumps(found.coco(name, "panoptic.png")).encode() + b"\n"
    files = iter([("panoptic/panoptic.png", found.png), ("panoptic.json", content)])
    return Answer(rows, files=files)


def _add_semantic(parser: argparse.ArgumentParser) -> None:
    usage.texts(parser, "--labels", "labels; a single value is split at commas", True)
    parser.add_argument("--refine", action="store_true", help="refine regions with the SAM head")
    parser.add_argument(
        "--background", action="store_true", help="leave ambiguous pixels unlabelled"
    )
    usage.tiles(parser)
    usage.out(parser, OUT)
    parser.set_defaults(
        run=answers.over_images(_semantic),
        categories=_labels,
        columns=lambda args: ("image", *REGION),
    )


def _semantic(photo: Photo, args: argparse.Namespace) -> Answer:
    found = photo.semantic(
        _labels(args), refine=args.refine, background=args.background, tiles=args.tiles
    )
    rows = [
        {
            "label": region.label,
            "score": region.score,
            "area": region.area,
            "share": region.area / found.label_map.size,
            "box": list(region.mask.box),
        }
        for region in found.regions
    ]
    return Answer(rows, [region.mask for region in found.regions], _draw_semantic(photo, found))


def _draw_semantic(photo: Photo, found: SemanticMap) -> Files:
    yield "overlay.png", found.draw(read_pixels(photo.encoded))
    for region in found.regions:
        name = f"mask-{found.labels.index(region.label):03d}.png"
        yield name, drawing.mask_image(region.mask.array)


def _rows(masks: Masks) -> list[Row]:
    numbers = {mask: number for number, several in enumerate(masks.things) for mask in several}
    return [
        {
            "mask": number,
            "label": mask.label,
            "label_score": mask.label_score,
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
            "area": mask.area,
            "box": list(mask.box),
            "thing": numbers[mask],
        }
        for number, mask in enumerate(masks)
    ]


def mask_files(masks: Sequence[Mask]) -> Files:
    for number, mask in enumerate(masks):
        yield f"mask-{number:03d}.png", drawing.mask_image(mask.array)


SEGMENT = Command(
    "segment",
    "segment objects by points, boxes, texts or examples",
    [
        "samclip segment cat.jpg --point 200 60 --out out/",
        "samclip segment photos/ --text cat --format yolo --out cats/",
        "samclip segment photos/ --like cup.jpg --box 20 30 180 200 --out cups/",
    ],
    _add_segment,
    "IMAGE … (--point | --box | --text | --like …) [options]",
    about_images=True,
    formats=FORMATS,
)
EVERYTHING = Command(
    "everything",
    "segment every object",
    [
        "samclip everything cat.jpg --vocabulary coco --out out/",
        "samclip everything photos/ --labels cat,dog --format coco > objects.json",
    ],
    _add_everything,
    "IMAGE … [options]",
    about_images=True,
    formats=FORMATS,
)
SEMANTIC = Command(
    "semantic",
    "assign one of the labels to each pixel",
    [
        "samclip semantic street.jpg --labels road,car,sky --refine --out out/",
        'samclip semantic "photos/*.jpg" --labels cat blanket --format jsonl',
    ],
    _add_semantic,
    "IMAGE … --labels TEXT … [options]",
    about_images=True,
    formats=FORMATS,
)
