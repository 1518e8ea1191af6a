"""``samclip eval``: what a checkpoint can do, in the paper's tasks, on photographs it never saw.

Every task takes a model and the folder of the photograph sets, and gives named figures in [0, 1].
Only the ``val`` parts are read.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm import tqdm

from samclip_core import checkpoint
from samclip_core.model import SamClip
from samclip_core.scores import class_embeddings
from samclip_core.types import Prompt
from training.card import complete, table
from training.data import Sample, class_names, label_map, read_shards, regions

Metrics = dict[str, float]


def masks(model: SamClip, root: Path) -> Metrics:
    """Mean IoU of a box prompt's one mask, and of the best of three masks of a centre point."""
    metrics = {}
    for source in ("coco_multi", "bsds500"):
        box, point, first = [], [], []
        for sample in _progress(read_shards(root, source, "val"), f"masks {source}"):
            truths = [coco_mask.decode(rle).astype(bool) for rle in regions(sample)]
            if not truths:
                continue
            features = model.encode(sample.encoded)
            boxes = [Prompt(box=_box(truth)) for truth in truths]
            points = [Prompt(points=(_centre(truth),)) for truth in truths]
            answers = model.segment(features, boxes, multimask=False)
            box += [_iou(a.masks_MHW[0], t) for a, t in zip(answers, truths, strict=True)]
            answers = model.segment(features, points, multimask=True)
            each = [[_iou(m, t) for m in a.masks_MHW] for a, t in zip(answers, truths, strict=True)]
            point += [max(ious) for ious in each]
            first += [ious[0] for ious in each]
        metrics[f"{source}_box_miou"] = float(np.mean(box))
        metrics[f"{source}_point_best_of_3_miou"] = float(np.mean(point))
        metrics[f"{source}_point_miou"] = float(np.mean(first))
    return metrics


def classification(model: SamClip, root: Path) -> Metrics:
    """Zero-shot top-1 over the class names of a set."""
    metrics = {}
    for source in ("caltech101", "imagen200", "imagenet1k_sample"):
        names = class_names(root, source)
        labels_TD = class_embeddings(model.embed_text, list(names.values()), model.config.templates)
        indices = np.array(list(names))
        samples = read_shards(root, source, "val")
        right = [
            indices[(labels_TD @ model.embed_image(sample.encoded)).argmax()] == sample.class_index
            for sample in _progress(samples, f"classification {source}")
        ]
        metrics[f"{source}_top1"] = float(np.mean(right))
    return metrics


def retrieval(model: SamClip, root: Path) -> Metrics:
    """Text to image: how often a caption finds its photograph among the first k."""
    samples = [s for s in read_shards(root, "coco_multi", "val") if s.info["captions"]]
    image_BD = np.stack([model.embed_image(s.encoded) for s in _progress(samples, "retrieval")])
    captions = [(i, text) for i, s in enumerate(samples) for text in s.info["captions"]]
    text_TD = model.embed_text([text for _, text in captions])
    similarity_TB = text_TD @ image_BD.T
    own_T1 = similarity_TB[np.arange(len(captions)), [i for i, _ in captions]][:, None]
    rank_T = (similarity_TB > own_T1).sum(axis=1)
    return {f"coco_multi_text_to_image_r{k}": float((rank_T < k).mean()) for k in (1, 5, 10)}


def semantic(model: SamClip, root: Path) -> Metrics:
    """Mean IoU of text-prompted semantic segmentation over the classes that occur."""
    metrics = {}
    for source in ("coco_multi", "labelmefacade", "camvid"):
        names = class_names(root, source)
        labels = [readable(name) for name in names.values()]
        samples = [
            sample
            for sample in read_shards(root, source, "val")
            if source != "coco_multi" or sample.info["label_kind"] == "panoptic"
        ]
        for head, refine in (("", False), ("_two_heads", True)):
            confusion_CC = np.zeros((len(labels), len(labels)), np.int64)
            for sample in _progress(samples, f"semantic {source}{head}"):
                answer = model.segment_text(sample.encoded, labels, refine=refine)
                confusion_CC += _confusion(label_map(sample), answer.label_map_HW, list(names))
            metrics[f"{source}_semantic{head}_miou"] = _mean_iou(confusion_CC)
    return metrics


TASKS: dict[str, Callable[[SamClip, Path], Metrics]] = {
    "masks": masks,
    "classification": classification,
    "retrieval": retrieval,
    "semantic": semantic,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a checkpoint; prints a table and writes metrics.json."""
    options = argparse.ArgumentParser(prog="samclip eval", description=main.__doc__)
    options.add_argument("--checkpoint", default="edge", help="name or directory")
    options.add_argument("--suite", choices=["all", *TASKS], default="all")
    options.add_argument(
        "--root", type=Path, default=Path("../shared/data"), help="folder of the photograph sets"
    )
    options.add_argument("--out", type=Path, default=Path("out/metrics.json"))
    options.add_argument(
        "--card", action="store_true", help="write the figures into the checkpoint's model card"
    )
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = options.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    model = SamClip.load(arguments.checkpoint)
    chosen = TASKS if arguments.suite == "all" else {arguments.suite: TASKS[arguments.suite]}
    metrics: Metrics = {}
    for task in chosen.values():
        metrics |= task(model, arguments.root)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"digest": model.digest} | metrics, indent=2) + "\n")
    print(f"| figure | value |\n|---|---|\n{table(metrics)}")
    if arguments.card:
        print(f"digest {complete(checkpoint.resolve(arguments.checkpoint), metrics)}")
    return 0


def readable(name: str) -> str:
    """A COCO-Stuff class name as a person would say it: "wall-brick" is a brick wall."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.replace(suffix, "")
    kind, _, material = name.partition("-")
    return (
        f"{material} {kind}"
        if kind in ("floor", "wall") and material
        else " ".join(name.split("-"))
    )


def _progress(samples: Sequence[Sample], what: str) -> Iterator[Sample]:
    return iter(tqdm(samples, desc=what, mininterval=2))


def _box(mask_HW: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    y, x = np.nonzero(mask_HW)
    return float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)


def _centre(mask_HW: NDArray[np.bool_]) -> tuple[float, float]:
    """The middle of the pixel that is furthest from the mask's edge and the picture's."""
    distance = cv2.distanceTransform(np.pad(mask_HW, 1).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return float(x) - 0.5, float(y) - 0.5


def _iou(a_HW: NDArray[np.bool_], b_HW: NDArray[np.bool_]) -> float:
    return float((a_HW & b_HW).sum() / max(1, (a_HW | b_HW).sum()))


def _confusion(
    truth_HW: NDArray[np.integer], answer_HW: NDArray[np.integer], indices: list[int]
) -> NDArray[np.int64]:
    """Pixels by (true class, answered class); pixels of other indices are not counted."""
    place = np.full(int(max(truth_HW.max(), *indices)) + 1, -1)
    place[indices] = np.arange(len(indices))
    row_HW = place[truth_HW]
    counted = row_HW >= 0
    cells = row_HW[counted] * len(indices) + answer_HW[counted]
    return np.bincount(cells, minlength=len(indices) ** 2).reshape(len(indices), -1)


def _mean_iou(confusion_CC: NDArray[np.int64]) -> float:
    hit_C = np.diag(confusion_CC)
    union_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1) - hit_C
    present_C = confusion_CC.sum(axis=1) > 0
    return float((hit_C[present_C] / union_C[present_C]).mean())


if __name__ == "__main__":
    raise SystemExit(main())
