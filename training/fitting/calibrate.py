"""``samclip calibrate``: fit the numbers of ``config.json`` that hold for one checkpoint alone.

The sharpness of SAM's attention is the one with the highest mean IoU; other modules fit the other
numbers. The search for regions comes before all numbers that judge its regions. None depends on
what it was before, so a second calibration changes nothing.

A third of the photographs for validation is for choosing; the others measure the result. The
photographs for training shape weights too, but no least score: a model may have been trained on
them, and then refuses there what it accepts elsewhere.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self, get_args

import numpy as np
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.calibration import Calibration
from samclip_core.engine.base import DtypeChoice
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from training.data.annotations import regions, thing_names
from training.data.sample import Sample
from training.evaluation import outlines, semantic
from training.evaluation.layouts import LabelledSet
from training.evaluation.measures import mean_iou, semantic_figures
from training.evaluation.outlines import NamedThings
from training.evaluation.suite import Metrics, Options, own_samples
from training.fitting import concepts, examples, likely, presence, searches
from training.fitting.concepts import Things
from training.fitting.photographs import Photographs
from training.results.tables import figure_table

SHARPNESS = (None, 20.0, 40.0, 60.0, 80.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit a checkpoint's numbers, print how well they do on other photographs, and write them."""
    arguments = parser().parse_args(argv)
    try:
        figures, digest = calibrate(
            arguments.checkpoint, arguments.data, arguments.device, arguments.dtype
        )
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
much a text counts beside a picture (text_weight), the search for everything
that asks few points and loses little (search), the scores of examples (alike),
how strongly a concept competes with texts (concepts), and the score from which
a search in a collection has found what a text says (likely); without, these
stay as they are. A third of the photographs is for fitting, the others measure
the result: take photographs that the model was not trained on. Those in shards
train-00000.tar …, on which it may have been trained, are for fitting weights,
too, but not least scores. Of a second --data and more, only outlined regions
count, for the search.

Numbers hold for the precision that serves: run samclip export before, and on a
CPU, the exported graphs are used.

examples:
  samclip calibrate pair/ --data photos/coco_multi --data photos/bsds500
  samclip calibrate radio-b/ --data photos/coco_multi --device cuda""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    add = made.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="its directory, which is changed")
    add(
        "--data",
        type=Path,
        required=True,
        action="append",
        metavar="DIR",
        help="folder of a photograph set; the first one has names",
    )
    add("--device", default="cpu", help="torch device: cpu, cuda, cuda:1 (%(default)s)")
    add(
        "--dtype",
        choices=get_args(DtypeChoice),
        metavar="DTYPE",
        default="auto",
        help="encoder precision, as of samclip eval (auto: the one that serves here)",
    )
    return made


def calibrate(
    name: str, data: Sequence[Path], device: str = "cpu", dtype: DtypeChoice = "auto"
) -> tuple[Metrics, str]:
    """Fit and write the numbers of a checkpoint; return their figures and the new digest.

    Raises ValueError, OSError, and the errors of a checkpoint.
    """
    if name.startswith("hf://"):
        raise ValueError(f"{name} is read-only: fetch it with `samclip pull`, then calibrate that")
    if not (data[0] / "classes.json").is_file():
        raise ValueError(
            f"{data[0]} has no classes.json: give the folder of one photograph set, whose layout "
            "`samclip calibrate --help` describes"
        )
    if checkpoint.resolve(name).is_relative_to(checkpoint.BUNDLED):
        raise ValueError(f"{name} belongs to the program: copy its folder, and calibrate that")
    directory = checkpoint.resolve(name)
    with tempfile.TemporaryFile(dir=directory):
        pass  # a folder that cannot be written is refused now, not after the fits
    given = Given.of([folder.resolve() for folder in data])
    model = SamClip.load(directory, device, dtype)
    if not model.config.masks:
        raise ValueError(
            f"the checkpoint {model.config.name!r} makes no masks, and only their scores are fitted"
        )
    calibration, fitted_to = fit(model, given)
    figures = measured(model, given, calibration, fitted_to.named)
    about = {"data": [folder.name for folder in data], "dtype": model.dtype, **figures}
    return figures, checkpoint.calibrate(directory, calibration, about)


class Given(NamedTuple):
    """A set's photographs for choosing, for training and for reporting, and the names of things.

    ``others`` are further sets whose regions count, by name: those to choose, and to report.
    """

    root: Path
    source: str
    names: list[str]
    choose: list[Sample]
    training: list[Sample]
    report: list[Sample]
    others: dict[str, tuple[list[Sample], list[Sample]]]

    @classmethod
    def of(cls, data: Sequence[Path], limit: int | None = None) -> Self:
        """Read photograph sets, at most ``limit`` of each part. Raises OSError and ValueError."""
        root, source = data[0].parent, data[0].name
        choose, report = _parts(data[0], _things, limit)
        try:
            options = Options(root=root, limit=limit)
            training = own_samples(options, source, "train", usable=_things)
        except (FileNotFoundError, ValueError):  # none at all, or none with things
            training = []
        known = {sample.key for sample in (*choose, *report)}  # without splits, they are the same
        training = [sample for sample in training if sample.key not in known]
        others = {folder.name: _parts(folder, regions, limit) for folder in data[1:]}
        return cls(root, source, thing_names(root, source), choose, training, report, others)


def _parts(
    data: Path, usable: Callable[[Sample], object], limit: int | None
) -> tuple[list[Sample], list[Sample]]:
    """Return the photographs of a set for choosing and for reporting."""
    choose, report = (
        own_samples(Options(root=data.parent, part=part, limit=limit), data.name, usable=usable)
        for part in ("select", "report")
    )
    return choose, report


def fit(model: SamClip, given: Given) -> tuple[Calibration, Photographs]:
    """Fit each number after those that it depends on; those without data stay as they are.

    Also return the photographs that shaped the weights.
    """
    before = model.config.fitted
    maps = semantic.labelled_set(given.root, given.source, given.choose)
    attention = sharpest(model, maps) if maps.pictures else before.attention
    chosen_with = [given.choose, *(choose for choose, _ in given.others.values())]
    search = searches.fit(model, chosen_with, before.search)
    fitted = replace(before, attention=attention, search=search)
    _set(model, fitted)  # its search finds the regions from here on
    unseen = Photographs.read(model, given.choose, given.names)
    every = unseen + Photographs.read(model, given.training, given.names)
    text_ND = model.embed_labels(given.names)
    label_score = before.min_label_score
    fitted = replace(
        fitted,
        min_label_score=outlines.least_share(unseen.named) if unseen.named else label_score,
        text_weight=outlines.text_weight(every.named, text_ND) or before.text_weight,
        presence=presence.fit(every.evidence, unseen.evidence),
        likely=likely.fit(every.evidence, unseen.evidence) or before.likely,
        alike=examples.fit(every.alike, unseen.alike) or before.alike,
        concepts=concepts.fit(Things.of(every.named), text_ND) or before.concepts,
    )
    return fitted, every


def measured(
    model: SamClip, given: Given, calibration: Calibration, named: Sequence[NamedThings]
) -> Metrics:
    """Return how well the numbers do on the photographs for reporting.

    ``named`` are other photographs, of whose things concepts are made.
    """
    _set(model, calibration)
    report = Photographs.read(model, given.report, given.names)
    text_ND, figures = model.embed_labels(given.names), Metrics()
    if calibration.presence:
        figures |= presence.measured(calibration.presence, report.evidence)
    if calibration.likely:
        figures |= likely.measured(calibration.likely, report.evidence)
    if calibration.alike:
        figures |= examples.measured(calibration.alike, report.alike)
    figures |= outlines.measured(calibration, report.named, text_ND)
    examples_of, asked = Things.of(named), Things.of(report.named)
    figures |= concepts.measured(examples_of, asked, text_ND, calibration.concepts)
    figures |= searches.measured(given.source, report.found, report.outlined)
    for source, (_, samples) in given.others.items():
        found = [searches.regions_found(model.regions(one.encoded), one) for one in samples]
        figures |= searches.measured(source, found, samples)
    maps = semantic.labelled_set(given.root, given.source, given.report)
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
