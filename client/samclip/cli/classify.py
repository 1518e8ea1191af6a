"""``samclip classify``, ``explain`` and ``embed``: what an image shows, where, and as a vector."""

import argparse
import sys
from dataclasses import fields
from typing import Any

from PIL import Image

from samclip.cli import answers, usage
from samclip.cli.formats import Answer, Files, Row
from samclip.cli.usage import Command, UsageError
from samclip.client import Client
from samclip.images import read_pixels
from samclip.photo import Photo
from samclip.types import HeatMap, Score

SCORE = [each.name for each in fields(Score)]


def _add_classify(parser: argparse.ArgumentParser) -> None:
    usage.texts(parser, "--labels", "labels to rank; a single value is split at commas", True)
    usage.texts(parser, "--templates", "prompt templates, with {} for the label")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="best K labels (all)")
    usage.boxes(parser, "classify this part instead, in pixels; repeat for several parts")
    parser.set_defaults(run=answers.over_images(_classify, _check_labels), columns=_columns)


def _columns(args: argparse.Namespace) -> list[str]:
    return ["image", *(["box"] if args.box else []), *SCORE]


def _check_labels(args: argparse.Namespace) -> None:
    if len({*usage.split(args.labels)}) == 1:
        print(
            "samclip: a single label always has a score of 1: give others to compare it with, "
            "or compare the similarity between images",
            file=sys.stderr,
        )


def _classify(photo: Photo, args: argparse.Namespace) -> Answer:
    labels = usage.split(args.labels)
    options: dict[str, Any] = {"templates": args.templates, "top_k": args.top_k}
    if args.box:
        of = [{"box": box} for box in args.box]
        rankings = photo.classify_areas(labels, boxes=args.box, **options)
    else:
        of, rankings = [{}], [photo.classify(labels, **options)]
    return Answer(
        [
            {**what, **vars(score)}
            for what, ranking in zip(of, rankings, strict=True)
            for score in ranking
        ]
    )


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label", required=True, metavar="TEXT", help="what to look for")
    usage.texts(parser, "--others", "show the label's share among these instead")
    usage.out(parser, "write overlay.png, and heat.png of the levels")
    columns = ("image", "label", "low", "high", "highest_at")
    parser.set_defaults(run=answers.over_images(_explain), columns=lambda args: columns)


def _explain(photo: Photo, args: argparse.Namespace) -> Answer:
    found = photo.explain(args.label, usage.split(args.others))
    y, x = divmod(int(found.levels.argmax()), found.levels.shape[1])
    row = {"label": args.label, "low": found.low, "high": found.high, "highest_at": [x, y]}
    return Answer([row], files=_draw(photo, found))


def _draw(photo: Photo, found: HeatMap) -> Files:
    yield "overlay.png", found.draw(read_pixels(photo.encoded))
    yield "heat.png", Image.fromarray(found.levels)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    usage.texts(parser, "--text", "texts to embed")
    parser.set_defaults(run=answers.over_images(_embed, _check_embed, _embed_texts), key="of")
    parser.set_defaults(columns=lambda args: ("of", "vector"))


def _check_embed(args: argparse.Namespace) -> None:
    if not args.images and not args.text:
        raise UsageError("embed needs an IMAGE or --text TEXT")


def _embed(photo: Photo, args: argparse.Namespace) -> Answer:
    return Answer([{"vector": photo.embed().tolist()}])


def _embed_texts(client: Client, args: argparse.Namespace) -> list[Row]:
    if not args.text:
        return []
    vectors = client.embed_text(args.text).tolist()
    return [{"of": text, "vector": vector} for text, vector in zip(args.text, vectors, strict=True)]


CLASSIFY = Command(
    "classify",
    "rank labels for each image",
    [
        'samclip classify cat.jpg --labels "a cat" "a dog"',
        "samclip classify photos/ --labels cat,dog --format csv > labels.csv",
    ],
    _add_classify,
    "IMAGE … --labels TEXT … [options]",
    about_images=True,
)
EXPLAIN = Command(
    "explain",
    "show where the model sees a label, as a heat map",
    [
        'samclip explain cat.jpg --label "a cat" --out out/',
        "samclip explain cat.jpg --label cat --others dog --out - > heat.png",
    ],
    _add_explain,
    "IMAGE … --label TEXT [options]",
    about_images=True,
)
EMBED = Command(
    "embed",
    "print the embeddings of images and texts",
    [
        "samclip embed photos/ --format jsonl > vectors.jsonl",
        'samclip embed --text "a cat" "a dog" --json',
    ],
    _add_embed,
    "[IMAGE …] [--text TEXT …] [options]",
    about_images=True,
)
