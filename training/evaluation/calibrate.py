"""``samclip calibrate``: fit the numbers of ``config.json`` that hold for one checkpoint alone.

Names of a photograph's outlined things are there, the set's other names are not. From the evidence
of both, a logistic regression gives the probability that a text describes something. The sharpness
of SAM's attention is the one with the highest mean IoU. The others are fitted by
``training.evaluation.outlines``. All are chosen on a third of the set's photographs and measured on
the others.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.answers.dense import BACKGROUND_WORDS
from samclip_core.answers.presence import Evidence, score
from samclip_core.answers.zero_shot import class_embeddings
from samclip_core.config import Presence
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from training.data.annotations import thing_names
from training.data.sample import Sample
from training.evaluation import concepts, examples, semantic
from training.evaluation.layouts import LabelledSet
from training.evaluation.measures import mean_iou, ratio_figures, semantic_figures
from training.evaluation.outlines import Outlined
from training.evaluation.regression import balanced_logistic
from training.evaluation.suite import Metrics, Options, own_samples, progress
from training.results.tables import figure_table

REFUSED = 11 / 12
"""Share of the absent names that score less than ``min_score``."""
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

With "segmentation" (COCO's RLE) and "area" in the instances, it also fits the
least share of a label that names a mask (min_label_score), how much a text
counts beside a picture (text_weight), how few points a search for everything
asks (search), the scores of examples (alike), and how much a concept wins from
texts (concepts); without, these stay as they are. A third of the photographs is
for fitting, the others measure the result.

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
    presence = fit(*evidence(model, choose, names))
    maps = semantic.labelled_set(root, source, choose)
    attention = sharpest(model, maps) if maps.pictures else model.config.fitted.attention
    calibration = replace(model.config.fitted, presence=presence, attention=attention)
    calibration = Outlined(model, choose, names).fit(calibration)
    alike = examples.fit(examples.photos_of(model, choose)) or calibration.alike
    calibration = replace(calibration, alike=alike)
    given = concepts.things(model, choose, names)
    space = concepts.fit(model, given, names) or calibration.concepts
    calibration = replace(calibration, concepts=space)
    figures = measured(presence, *evidence(model, report, names))
    maps = semantic.labelled_set(root, source, report)
    ways = {"semantic": attention, "semantic_without_attention": None} if maps.pictures else {}
    for way, sharpness in ways.items():
        _set_attention(model, sharpness)
        figures |= semantic_figures(way, semantic.measure(model, maps))
    figures |= Outlined(model, report, names).measured(calibration)
    if alike:
        figures |= examples.measured(alike, examples.photos_of(model, report))
    asked = concepts.things(model, report, names)
    figures |= concepts.measured(model, given, asked, names, space)
    return figures, checkpoint.calibrate(directory, calibration, {"data": source, **figures})


def evidence(
    model: SamClip, samples: Sequence[Sample], names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the evidence of N names in P photographs, and whether they are there.

    P×N×2, the peak of the name's map and the evidence of the image vector; P×N.
    """
    words = [*names, *BACKGROUND_WORDS]
    text_XD = class_embeddings(model.embed_text, words, model.config.templates)
    wanted, background_KD = dict(zip(names, text_XD, strict=False)), text_XD[len(names) :]
    values, there = [], []
    for sample in progress(samples, "presence"):
        features = model.encode(sample.encoded)
        found = Evidence.of(features, wanted, background_KD, model.config.logit_scale)
        peaks = [found.peak(name, found.picture_ss) for name in names]
        values.append(np.stack([peaks, found.pooled_X], axis=1))
        there.append([name in _things(sample) for name in names])
    return np.array(values), np.array(there)


def _things(sample: Sample) -> set[str]:
    """Return the names of a photograph's things; none if they are not outlined one by one."""
    instances = sample.info.get("instances") or ()
    single = any(not instance.get("iscrowd") for instance in instances)
    return {instance["category"] for instance in instances} if single else set()


def fit(values_PN2: NDArray[np.float64], there_PN: NDArray[np.bool_]) -> Presence:
    """Fit a balanced logistic regression with an L2 penalty; names there and not count the same.

    Raises ValueError unless both occur.
    """
    values_M2, there_M = values_PN2.reshape(-1, 2), there_PN.reshape(-1)
    if there_M.all() or not there_M.any():
        raise ValueError(
            f"{there_M.sum()} of {len(there_M)} names are in their photographs: give photographs "
            "that hold some names of classes.json and lack others"
        )
    map_weight, pooled_weight, offset = balanced_logistic(values_M2, there_M)
    fitted = Presence(
        map_weight=map_weight, pooled_weight=pooled_weight, offset=offset, min_score=0.5
    )
    absent_K2 = values_M2[~there_M]
    least = np.quantile(score(fitted, *absent_K2.T), REFUSED)
    return replace(fitted, min_score=round(float(least), 3))


def sharpest(model: SamClip, maps: LabelledSet) -> float | None:
    """Return the sharpness of the attention with the highest mean IoU; None if none is higher."""

    def miou(sharpness: float | None) -> float:
        _set_attention(model, sharpness)
        return mean_iou(np.sum(semantic.measure(model, maps), axis=0))

    return max(SHARPNESS, key=miou)


def _set_attention(model: SamClip, sharpness: float | None) -> None:
    calibration = replace(model.config.fitted, attention=sharpness)
    model.config = replace(model.config, calibration=calibration)


def measured(
    presence: Presence, values_PN2: NDArray[np.float64], there_PN: NDArray[np.bool_]
) -> Metrics:
    """Return the shares of present names found and of absent names refused, and their numbers.

    With 95 % bootstrap intervals over photographs.
    """
    found_PN = score(presence, *np.moveaxis(values_PN2, -1, 0)) >= presence.min_score
    present_P, absent_P = there_PN.sum(axis=1), (~there_PN).sum(axis=1)
    return (
        ratio_figures("names_found", (found_PN & there_PN).sum(axis=1), present_P)
        | ratio_figures("names_refused", (~found_PN & ~there_PN).sum(axis=1), absent_P)
        | {"names_present": int(present_P.sum()), "names_absent": int(absent_P.sum())}
        | {"names_photographs": len(there_PN)}
    )


if __name__ == "__main__":
    raise SystemExit(main())
