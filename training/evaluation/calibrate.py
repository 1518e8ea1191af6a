"""``samclip calibrate``: fit the numbers of ``config.json`` that hold for one checkpoint alone.

The sharpness of SAM's attention is the one with the highest mean IoU; other modules fit the other
numbers. Numbers follow those that they depend on: the search for regions comes before all numbers
that judge its regions. None depends on what it was before, so a second calibration changes nothing.

All are chosen on a third of the set's photographs for validation, and measured on the others. The
set's photographs for training shape the weights of texts too, but no least score: a model may have
been trained on them, and then refuses there what it accepts elsewhere.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

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
everything asks (search), the scores of examples (alike), how strongly a concept
competes with texts (concepts), and the score from which a search in a
collection has found what a text says (likely); without, these stay as they are.
A third of the photographs is for fitting, the others measure the result: take
photographs that the model was not trained on. Those in shards
train-00000.tar …, on which it may have been trained, are for fitting texts,
too, but not their least scores.

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
    directory = checkpoint.resolve(name)
    with tempfile.TemporaryFile(dir=directory):
        pass  # a folder that cannot be written is refused now, not after the fits
    photographs = Photographs.of(data.resolve())
    model = SamClip.load(directory, device)
    if not model.config.masks:
        raise ValueError(
            f"the checkpoint {model.config.name!r} makes no masks, and only their scores are fitted"
        )
    calibration = fit(model, photographs)
    figures = measured(model, photographs, calibration)
    about = {"data": photographs.source, **figures}
    return figures, checkpoint.calibrate(directory, calibration, about)


class Photographs(NamedTuple):
    """A set's photographs for choosing, for training and for reporting, and the names of things."""

    root: Path
    source: str
    names: list[str]
    choose: list[Sample]
    training: list[Sample]
    report: list[Sample]

    @classmethod
    def of(cls, data: Path) -> Self:
        """Read a photograph set. Raises OSError and ValueError."""
        root, source = data.parent, data.name
        choose, report = (
            own_samples(Options(root=root, part=part), source, usable=_things)
            for part in ("select", "report")
        )
        try:
            training = own_samples(Options(root=root), source, "train", usable=_things)
        except (FileNotFoundError, ValueError):  # none at all, or none with things
            training = []
        known = {sample.key for sample in (*choose, *report)}  # without splits, they are the same
        training = [sample for sample in training if sample.key not in known]
        return cls(root, source, thing_names(root, source), choose, training, report)


def fit(model: SamClip, given: Photographs) -> Calibration:
    """Fit each number after those that it depends on; those without data stay as they are."""
    before = model.config.fitted
    maps = semantic.labelled_set(given.root, given.source, given.choose)
    attention = sharpest(model, maps) if maps.pictures else before.attention
    fitted = Outlined(model, given.choose, given.names).fit(replace(before, attention=attention))
    _set(model, fitted)  # its search finds the regions from here on
    unseen = presence.photos(model, given.choose, given.names)
    every = [*unseen, *presence.photos(model, given.training, given.names)]
    examples_of = concepts.things(model, given.choose, given.names)
    return replace(
        fitted,
        presence=presence.fit(every, unseen),
        likely=likely.fit(every, unseen) or before.likely,
        alike=examples.fit(examples.photos_of(model, given.choose)) or before.alike,
        concepts=concepts.fit(model, examples_of, given.names) or before.concepts,
    )


def measured(model: SamClip, given: Photographs, calibration: Calibration) -> Metrics:
    """Return how well the numbers do on the photographs for reporting."""
    _set(model, calibration)
    names, report = given.names, given.report
    photos, figures = presence.photos(model, report, names), Metrics()
    if calibration.presence:
        figures |= presence.measured(calibration.presence, photos)
    if calibration.likely:
        figures |= likely.measured(calibration.likely, photos)
    if calibration.alike:
        figures |= examples.measured(calibration.alike, examples.photos_of(model, report))
    figures |= Outlined(model, report, names).measured(calibration)
    drawn, asked = (concepts.things(model, part, names) for part in (given.choose, report))
    figures |= concepts.measured(model, drawn, asked, names, calibration.concepts)
    maps = semantic.labelled_set(given.root, given.source, report)
    ways = {"semantic": calibration.attention, "semantic_without_attention": None}
    for way, sharpness in ways.items() if maps.pictures else ():
        _set(model, replace(calibration, attention=sharpness))
        figures |= semantic_figures(way, semantic.measure(model, maps))
    return figures


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
