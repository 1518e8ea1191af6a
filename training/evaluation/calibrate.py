"""``samclip calibrate``: fit the numbers of ``config.json`` that hold for one checkpoint alone.

The sharpness of SAM's attention is the one with the highest mean IoU. The numbers of text prompts
are fitted by ``training.evaluation.presence``, the others by ``training.evaluation.outlines``. All
are chosen on a third of the set's photographs, those of text prompts also on its photographs for
training, and measured on the others.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.calibration import Calibration
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from training.data.annotations import thing_names
from training.data.sample import Sample
from training.evaluation import concepts, examples, likely, presence, semantic
from training.evaluation.layouts import LabelledSet
from training.evaluation.measures import mean_iou, semantic_figures
from training.evaluation.outlines import Outlined
from training.evaluation.suite import Metrics, Options, own_samples
from training.results.tables import figure_table

SHARPNESS = (None, 20.0, 40.0, 60.0, 80.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit a checkpoint's numbers, print how well they do on other photographs, and write them."""
    arguments = parser().parse_args(argv)
    try:
        figures, digest = calibrate(arguments.checkpoint, arguments.data, arguments.device)
    except (SamClipError, OSError, ValueError) as error:
        print(f"samclip calibrate: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"samclip calibrate: a file of the set has no {error} key", file=sys.stderr)
        return 1
    print(figure_table(figures, "figure (photographs set aside)"))
    print(f"digest {digest}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    made = argparse.ArgumentParser(
        prog="samclip calibrate",
        description="""Fit a checkpoint's scores to photographs of things with names: the score
of a text becomes the probability that its object is there, where present and
absent objects are equally common. The numbers are written into config.json.
Weights and exported graphs stay, but the digest changes: calibrate before you
index collections.""",
        epilog="""--data is a folder with these files, or with shards of them, val-00000.tar …:

  classes.json         {"classes": [{"id": 1, "name": "person", "isthing": 1}]}
  KEY.jpg, KEY.json    {"instances": [{"category": "person", "iscrowd": 0}]}
  KEY.png              a label map, the ids of the classes, to fit the attention

With "segmentation" (COCO's RLE) and "area" in the instances, it also fits which
regions of a picture a text describes (presence), which takes some seconds per
photograph, the least share of a label that names a mask (min_label_score), how
much a text counts beside a picture (text_weight), how few points a search for
everything asks (search), the scores of examples (alike), how much a concept
wins from texts (concepts), and the score from which a search in a collection
has found what a text says (likely); without, these stay as they are. A third of
the photographs is for fitting, the others measure the result. Photographs in
shards train-00000.tar … are for fitting texts, too.

examples:
  samclip calibrate pair/ --data photos/coco_multi
  samclip calibrate radio-b/ --data photos/coco_multi --device cuda""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    add = made.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="its directory, which is changed")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of one photograph set")
    add("--device", default="cpu", help="torch device: cpu, cuda, cuda:1 (%(default)s)")
    return made


def calibrate(name: str, data: Path, device: str = "cpu") -> tuple[Metrics, str]:
    """Fit and write the numbers of a checkpoint; return their figures and the new digest.

    Raises ValueError, OSError, and the errors of a checkpoint.
    """
    if name.startswith("hf://"):
        raise ValueError(f"{name} is read-only: fetch it with `samclip pull`, then calibrate that")
    if not (data / "classes.json").is_file():
        raise ValueError(
            f"{data} has no classes.json: give the folder of one photograph set, whose layout "
            "`samclip calibrate --help` describes"
        )
    if checkpoint.resolve(name).is_relative_to(checkpoint.BUNDLED):
        raise ValueError(f"{name} belongs to the program: copy its folder, and calibrate that")
    directory, root, source = checkpoint.resolve(name), data.resolve().parent, data.resolve().name
    names = thing_names(root, source)
    choose, report = (
        own_samples(Options(root=root, part=part), source, usable=_things)
        for part in ("select", "report")
    )
    model = SamClip.load(directory, device)
    if not model.config.masks:
        raise ValueError(
            f"the checkpoint {model.config.name!r} makes no masks, and only their scores are fitted"
        )
    maps = semantic.labelled_set(root, source, choose)
    attention = sharpest(model, maps) if maps.pictures else model.config.fitted.attention
    calibration = replace(model.config.fitted, attention=attention)
    calibration = Outlined(model, choose, names).fit(calibration)
    alike = examples.fit(examples.photos_of(model, choose)) or calibration.alike
    calibration = replace(calibration, alike=alike)
    given = concepts.things(model, choose, names)
    space = concepts.fit(model, given, names) or calibration.concepts
    calibration = replace(calibration, concepts=space)
    _set(model, calibration)  # its search finds the regions
    given_photos = presence.photos(model, _with_training(data, choose, report), names)
    fitted, scores = presence.fit(given_photos), likely.fit(given_photos) or calibration.likely
    calibration = replace(calibration, presence=fitted, likely=scores)
    report_photos = presence.photos(model, report, names)
    figures = presence.measured(fitted, report_photos)
    if scores:
        figures |= likely.measured(scores, report_photos)
    maps = semantic.labelled_set(root, source, report)
    ways = {"semantic": attention, "semantic_without_attention": None} if maps.pictures else {}
    for way, sharpness in ways.items():
        _set(model, replace(calibration, attention=sharpness))
        figures |= semantic_figures(way, semantic.measure(model, maps))
    figures |= Outlined(model, report, names).measured(calibration)
    if alike:
        figures |= examples.measured(alike, examples.photos_of(model, report))
    asked = concepts.things(model, report, names)
    figures |= concepts.measured(model, given, asked, names, space)
    return figures, checkpoint.calibrate(directory, calibration, {"data": source, **figures})


def _with_training(data: Path, choose: Sequence[Sample], report: Sequence[Sample]) -> list[Sample]:
    """Add the set's photographs for training, if it has any, to those for choosing."""
    options = Options(root=data.resolve().parent)
    try:
        training = own_samples(options, data.resolve().name, "train", usable=_things)
    except (FileNotFoundError, ValueError):  # none at all, or none with things
        return list(choose)
    known = {sample.key for sample in (*choose, *report)}  # without splits, they are the same
    return [*choose, *(sample for sample in training if sample.key not in known)]


def _things(sample: Sample) -> set[str]:
    """Return the names of a photograph's things; none if they are not outlined one by one."""
    instances = sample.info.get("instances") or ()
    single = any(not instance.get("iscrowd") for instance in instances)
    return {instance["category"] for instance in instances} if single else set()


def sharpest(model: SamClip, maps: LabelledSet) -> float | None:
    """Return the sharpness of the attention with the highest mean IoU; None if none is higher."""

    def miou(sharpness: float | None) -> float:
        _set(model, replace(model.config.fitted, attention=sharpness))
        return mean_iou(np.sum(semantic.measure(model, maps), axis=0))

    return max(SHARPNESS, key=miou)


def _set(model: SamClip, calibration: Calibration) -> None:
    model.config = replace(model.config, calibration=calibration)


if __name__ == "__main__":
    raise SystemExit(main())
