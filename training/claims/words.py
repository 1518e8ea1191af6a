"""Things by their names: one request with all names, against SAM's masks cropped and named by CLIP.

Both procedures use the same checkpoint. ``names`` asks for every thing name of coco_multi at once;
``crops`` encodes the crop of each mask of everything and gives it its most likely name.
"""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from samclip_core.answers.zero_shot import class_embeddings, classify
from samclip_core.io.image import decode
from samclip_core.model import SamClip
from training.claims.command import add_checkpoint, claim_parser, options_of, write
from training.claims.pipeline import encoded_cuts
from training.data.annotations import encoded, thing_names
from training.data.sample import Sample
from training.evaluation.coco import average_precision, to_coco
from training.evaluation.suite import Metrics, own_samples, progress
from training.evaluation.words import SOURCE, truths
from training.results.tables import table

Found = Iterator[tuple[str, float, NDArray[np.bool_]]]
"""The name of a thing, its score and its mask, H×W."""


def by_names(model: SamClip, image_HW3: NDArray[np.uint8], names: Sequence[str]) -> Found:
    """Ask for all names in one call."""
    for masks in model.find(image_HW3, names):
        for mask in masks:
            yield mask.label, mask.label_score, mask.mask_HW


def by_crops(model: SamClip, image_HW3: NDArray[np.uint8], names: Sequence[str]) -> Found:
    """Crop, encode and name each mask of everything."""
    text_LD = class_embeddings(model.embed_text, names, model.config.templates)
    masks, cuts = encoded_cuts(model, image_HW3, model.encode(image_HW3), "kept")
    for mask_HW, features in zip(masks, cuts, strict=True):
        pooled_D = model.embed_image(features)
        (best,) = classify(pooled_D, text_LD, names, model.config.logit_scale, top_k=1)
        yield best.label, best.score, mask_HW


PROCEDURES: dict[str, Callable[[SamClip, NDArray[np.uint8], Sequence[str]], Found]] = {
    "names": by_names,
    "crops": by_crops,
}


def measure(model: SamClip, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Metrics]:
    """Return each procedure's mask AP by COCO's rules, and its seconds per photograph.

    The names are embedded before the first photograph, as a service keeps them.
    """
    coco = _truth(samples, names)
    model.find(decode(samples[0].encoded, model.limits), names)
    figures: dict[str, Metrics] = {}
    for procedure, run in PROCEDURES.items():
        answers, seconds = [], 0.0
        for number, sample in enumerate(progress(samples, procedure), start=1):
            image_HW3 = decode(sample.encoded, model.limits)
            start = perf_counter()
            found = list(run(model, image_HW3, names))
            seconds += perf_counter() - start
            answers += [
                {
                    "image_id": number,
                    "category_id": names.index(name) + 1,
                    "segmentation": encoded(mask_HW),
                    "score": score,
                }
                for name, score, mask_HW in found
            ]
        precision = average_precision(coco, answers, sorted(coco.imgs))
        figures[procedure] = precision | {"seconds": seconds / len(samples)}
    return figures


def _truth(samples: Sequence[Sample], names: Sequence[str]) -> COCO:
    """Return the things of the photographs, numbered from 1, in COCO's format."""
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        for instance in sample.info["instances"]:
            known = {key: instance[key] for key in ("segmentation", "area", "bbox", "iscrowd")}
            category = names.index(instance["category"]) + 1
            place = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append(known | place)
    return to_coco(
        {
            "images": [
                {"id": number, "height": sample.info["height"], "width": sample.info["width"]}
                for number, sample in enumerate(samples, start=1)
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        }
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare one request with all names to cropped and named masks: mask AP and seconds."""
    parser = claim_parser("words", main.__doc__)
    add_checkpoint(parser)
    args = parser.parse_args(argv)
    options = options_of(parser, args)
    model = SamClip.load(args.checkpoint)
    samples = own_samples(options, SOURCE, usable=truths)
    rows = measure(model, samples, thing_names(options.root, SOURCE))
    text = table(
        ["procedure", "AP", "AP at IoU 0.5", "seconds per photograph"],
        [
            [name, f"{row['ap']:.2%}", f"{row['ap50']:.2%}", f"{row['seconds']:.2f}"]
            for name, row in rows.items()
        ],
    )
    found = {"digest": model.digest, "part": args.part, "photographs": len(samples), **rows}
    write(args.out, "words", found, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
