"""The suites of ``samclip eval``: what each one measures, on which layout, by whose protocol."""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from samclip_core.model import SamClip
from training.evaluation import coco, instances, probing, recognition, semantic, words
from training.evaluation.public_sets import SETS, PublicSet, open_set
from training.evaluation.suite import Metrics, Options, Task, openai_templates
from training.fitting import documents


@dataclass(frozen=True)
class Suite:
    """A task on a data set, with its layout and the source of its protocol for ``--help``.

    ``names``: it embeds class names, by default with the 80 templates of the paper. ``masks``: it
    needs a checkpoint with masks. ``reads``: what it needs of our own sets, as ``check_there``.
    """

    task: Task
    about: str
    names: bool = False
    masks: bool = False
    reads: Sequence[str] = ()


MEASURES: dict[str, Callable[..., Metrics]] = {
    "names": recognition.names,
    "captions": recognition.captions,
    "boxes": coco.boxes,
    "maps": semantic.public,
}


def measure_public(name: str, model: SamClip, options: Options) -> Metrics:
    """Return the figures of a public set by the measure of its task, and how many pictures count.

    Raises FileNotFoundError, OSError or ValueError as ``open_set``.
    """
    data = open_set(name, options.root, options.limit)
    return MEASURES[SETS[name].task](data, model, options) | {"photographs": len(data.pictures)}


def _public(name: str, row: PublicSet) -> Suite:
    named, masks = row.task in ("names", "maps"), row.task == "boxes"
    return Suite(partial(measure_public, name), row.about, named, masks)


def _named(*sets: str) -> list[str]:
    """Return sets, and the files with their names of classes."""
    return [name for one in sets for name in (one, f"{one}/classes.json")]


WORDS = (*_named(words.SOURCE, words.CLOTHES), "imagenet1k_sample/classes.json")
OWN: dict[str, Suite] = {
    "masks": Suite(
        instances.own_sets,
        "our own sets: boxes and points, IoU of outlined regions",
        masks=True,
        reads=instances.SOURCES,
    ),
    "classification": Suite(
        recognition.classify_own_sets, "our own sets: top-1", reads=_named(*recognition.CLASSIFIED)
    ),
    "retrieval": Suite(
        recognition.caption_own_set, "our own captions: recall", reads=["coco_multi"]
    ),
    "semantic": Suite(
        semantic.own_sets,
        "our own label maps: mIoU with one head and with two",
        reads=_named(*semantic.SOURCES),
    ),
    "words": Suite(
        words.own_set,
        "our own things by name: found, fitted; absent names refused",
        masks=True,
        reads=WORDS,
    ),
}
SLOW: dict[str, Suite] = {
    "clicks": Suite(
        instances.clicks,
        "our own sets, not part of all: clicks per object until its IoU is 0.85 and 0.90",
        reads=instances.SOURCES,
    ),
    "documents": Suite(
        documents.own_sets,
        "our own sets, not part of all: the fitted numbers with names, words, examples, concepts "
        "and a search for everything",
        masks=True,
        reads=[*documents.SETS, *WORDS],
    ),
}
PROBES: dict[str, Suite] = {
    "probe": Suite(
        probing.segmentation,
        "VOC2012, ADEChallengeData2016 or our own sets: --head on the encoder's map, table 3",
    ),
    "probe-classify": Suite(
        probing.classification,
        "train/CLASS/, val/CLASS/ or our own sets: linear head on pooled features, table 4",
    ),
}
SUITES: dict[str, Suite] = {
    **OWN,
    **SLOW,
    **{name: _public(name, row) for name, row in SETS.items()},
    **PROBES,
}


class Axis(NamedTuple):
    """A figure of a suite of ``samclip eval``, and the folder of its data set."""

    suite: str
    figure: str
    root: Path

    @classmethod
    def read(cls, given: str) -> Self:
        """Read SUITE/FIGURE=FOLDER. Raises ArgumentTypeError for anything else."""
        name, _, folder = given.partition("=")
        suite, _, figure = name.partition("/")
        if not (folder and figure) or suite not in SUITES:
            raise argparse.ArgumentTypeError(
                f"{given!r}: expected SUITE/FIGURE=FOLDER, as in coco-boxes/ap=COCO, with a suite "
                "of samclip eval"
            )
        return cls(suite, figure, Path(folder))

    def measure(self, model: SamClip, options: Options) -> float:
        """Return the figure. Raises ValueError if the suite has none of this name."""
        own, suite = model.config, SUITES[self.suite]
        if suite.names:
            model.config = replace(own, templates=openai_templates())
        figures = suite.task(model, replace(options, root=self.root))
        model.config = own
        if self.figure not in figures:
            raise ValueError(
                f"{self.suite} has no figure {self.figure}: it has {', '.join(figures)}"
            )
        return figures[self.figure]


def described() -> str:
    """Return a line per suite, and the flags that reproduce the paper's tables."""
    rows = [
        textwrap.fill(suite.about, 79, initial_indent=f"  {name:<15} ", subsequent_indent=" " * 18)
        for name, suite in SUITES.items()
    ]
    notes = (
        "top1 is of whole photographs, padded as in serving; paper_top1 is of their central "
        "squares, as published figures of CLIP models are.",
        "The paper evaluates names at --size 336, table 2 at --protocol paper --size 448 and "
        "boxes at SAM's own 1024. Semantic figures: miou is over the classes in the ground truth, "
        "miou_union over those with a union above 0 (mmsegmentation's rule), miou_low and "
        "miou_high are the 95 % bootstrap interval of miou over photographs. Those with paper in "
        "their name are of squashed frames without SAM's attention, the others as served.",
        "probe-classify on ImageNet with --size 336 --device cuda --dtype bfloat16 takes about 10 "
        "hours of an H100 for vit-b. A stopped probe starts again from the beginning.",
    )
    head = "suites, with the layout under --root and the paper's table (arXiv 2310.15308):"
    return "\n\n".join(["\n".join([head, *rows]), *(textwrap.fill(note, 79) for note in notes)])
