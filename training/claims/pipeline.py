"""The two-model pipeline that one merged model replaces: SAM's masks, cropped and named by CLIP.

Paper, table 2, last row (27.2 mIoU on Pascal VOC against 60.6 and 66.0). The photograph is cropped
to each mask of everything, each crop is encoded again, and its class is painted into the mask. Both
steps use the same checkpoint, so only the procedure differs, or those of ``--pair``: SAM and CLIP
one after the other. A pixel outside all masks gets the label of the nearest mask.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.io.image import decode
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from training.claims import claim_parser, options_of
from training.evaluation.layouts import LabelledSet
from training.evaluation.measures import class_pixels, semantic_figures
from training.evaluation.parallel import progress
from training.evaluation.public_sets import SETS, labelled
from training.evaluation.semantic import own_set
from training.evaluation.suite import Metrics, add_part
from training.results.tables import table

Surroundings = Literal["kept", "grey"]  # of a mask in its crop
Painted = tuple[NDArray[np.integer], int]
"""The label index of each pixel, ``HW``, and the number of encoder runs that it took."""
GREY = 124  # about ImageNet's mean in every channel
CUTS_AT_ONCE = 8


def cut_out(
    image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_], surroundings: Surroundings
) -> NDArray[np.uint8]:
    """Crop an image to the mask's box; pixels outside the mask are kept or grey."""
    x0, y0, x1, y1 = (int(edge) for edge in mask_box(mask_HW))
    crop_HW3 = image_HW3[y0:y1, x0:x1]
    if surroundings == "grey":
        crop_HW3 = np.where(mask_HW[y0:y1, x0:x1, None], crop_HW3, np.uint8(GREY))
    return np.ascontiguousarray(crop_HW3)


def paint(masks: Sequence[NDArray[np.bool_]], label_M: Sequence[int]) -> NDArray[np.int16]:
    """Paint labels into masks, the last on top; other pixels get the nearest pixel's label.

    There is a mask, and some of its pixels are set.
    """
    label_map_HW = np.full(masks[0].shape, -1, np.int16)
    for mask_HW, label in zip(masks, label_M, strict=True):
        label_map_HW[mask_HW] = label
    empty_HW = label_map_HW < 0
    _, nearest_HW = cv2.distanceTransformWithLabels(
        empty_HW.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # OpenCV numbers the painted pixels: map numbers to labels, then pixels to labels.
    label_N = np.zeros(nearest_HW.max() + 1, np.int16)
    label_N[nearest_HW[~empty_HW]] = label_map_HW[~empty_HW]
    return label_N[nearest_HW]


def pipeline(
    model: SamClip,
    labels_LD: NDArray[np.float32],
    surroundings: Surroundings,
    image_HW3: NDArray[np.uint8],
) -> Painted:
    """Crop, encode and name each mask of everything; the smallest are painted last.

    ``labels_LD``: class embeddings, rows of length 1.
    """
    encoded = [model.encode(image_HW3)]
    masks = [answer.mask_HW for answer in model.segment_everything(encoded[0])]
    masks = [mask_HW for mask_HW in masks if mask_HW.any()]
    crops = [model.prepare(cut_out(image_HW3, mask_HW, surroundings)) for mask_HW in masks]
    for start in range(0, len(crops), CUTS_AT_ONCE):
        encoded += model.encode_batch(crops[start : start + CUTS_AT_ONCE])
    best_M = [int((labels_LD @ model.embed_image(features)).argmax()) for features in encoded]
    whole_HW = np.ones(image_HW3.shape[:2], np.bool_)
    return paint(masks or [whole_HW], best_M[1:] or best_M), len(encoded)


def procedures(
    model: SamClip, labels: list[str], pair: SamClip | None = None
) -> dict[str, Callable[..., Painted]]:
    """Return the compared procedures by name; each takes an image, uint8 H×W×3.

    Without a ``pair``, the model's own heads are the two models.
    """
    two = pair or model
    labels_LD = two.embed_labels(labels)

    def merged(refine: bool, image_HW3: NDArray[np.uint8]) -> Painted:
        return model.segment_text(image_HW3, labels, refine=refine).label_map_HW, 1

    return {
        **{
            f"SAM everything + CLIP cuts, surroundings {kind}": partial(
                pipeline, two, labels_LD, kind
            )
            for kind in get_args(Surroundings)
        },
        "one head": partial(merged, False),
        "two heads": partial(merged, True),
    }


def measure(model: SamClip, data: LabelledSet, pair: SamClip | None = None) -> dict[str, Metrics]:
    """Run the procedures in turns on every photograph of a set.

    Returns their ``semantic`` figures, and ``encodes`` and ``seconds`` per photograph.
    """
    values, labels = list(data.classes), list(data.classes.values())
    known = procedures(model, labels, pair)
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in known}
    spent: dict[str, list[tuple[int, float]]] = {name: [] for name in known}
    for picture in progress(data.pictures, f"pipeline {data.name}"):
        image_HW3, truth_HW = decode(picture.read(), model.limits), picture.labels()
        for name, procedure in known.items():
            start = perf_counter()
            label_map_HW, encodes = procedure(image_HW3)
            spent[name].append((encodes, perf_counter() - start))
            counts[name].append(class_pixels(truth_HW, label_map_HW, values))
    return {
        name: semantic_figures("semantic", counts[name])
        | dict(zip(("encodes", "seconds"), np.mean(spent[name], axis=0).tolist(), strict=True))
        for name in known
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the two-model pipeline with one merged model: mIoU, encodes and seconds."""
    parser = claim_parser("pipeline", main.__doc__)
    parser.add_argument("--checkpoint", default="edge", help="name or directory")
    add_part(parser)
    parser.add_argument("--pair", help="name or directory of SAM and CLIP beside each other")
    public = ", ".join(name for name, row in SETS.items() if row.task == "maps")
    sets = f"coco_multi, labelmefacade or camvid; or, in --root, {public}"
    parser.add_argument("--set", default="coco_multi", help=sets)
    args = parser.parse_args(argv)
    options = options_of(parser, args)
    if args.set in SETS:
        data = labelled(args.set, options.root, options.limit)
    else:
        data = own_set(options, args.set)
    models = [name and SamClip.load(name, engine="torch") for name in (args.checkpoint, args.pair)]
    rows = measure(models[0], data, models[1])
    head = ["procedure", "mIoU", "interval", "encodes per photograph", "seconds per photograph"]
    cells = [
        [
            name,
            f"{row['semantic_miou']:.2%}",
            f"{row['semantic_miou_low']:.2%} to {row['semantic_miou_high']:.2%}",
            f"{row['encodes']:.1f}",
            f"{row['seconds']:.2f}",
        ]
        for name, row in rows.items()
    ]
    print(table(head, cells), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
