"""``samclip classify``: the labels that fit each image, or parts of it."""

import argparse
from typing import Any

from samclip.cli import answers, usage
from samclip.cli.formats import Answer
from samclip.cli.usage import Command
from samclip.photo import Photo


def _add(parser: argparse.ArgumentParser) -> None:
    usage.texts(parser, "--labels", "labels to rank; a single value is split at commas", True)
    usage.texts(parser, "--templates", "prompt templates, with {} for the label")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="best K labels (all)")
    usage.boxes(parser, "classify this part instead, in pixels; repeat for several parts")
    parser.set_defaults(run=answers.over_images(_ask))


def _ask(photo: Photo, args: argparse.Namespace) -> Answer:
    labels = usage.split(args.labels)
    options: dict[str, Any] = {"templates": args.templates, "top_k": args.top_k}
    if args.box:
        of = [{"box": box} for box in args.box]
        rankings = photo.classify_areas(labels, boxes=args.box, **options)
    else:
        of, rankings = [{}], [photo.classify(labels, **options)]
    return Answer(
        [
            {**what, "label": s.label, "score": s.score, "similarity": s.similarity}
            for what, ranking in zip(of, rankings, strict=True)
            for s in ranking
        ]
    )


COMMAND = Command(
    "classify",
    "rank labels for each image",
    [
        'samclip classify cat.jpg --labels "a cat" "a dog"',
        "samclip classify photos/ --labels cat,dog --format csv > labels.csv",
    ],
    _add,
    images="IMAGE … --labels TEXT … [options]",
)
