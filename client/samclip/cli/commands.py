"""The parser of all commands."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from samclip import __version__
from samclip.cli import (
    classify,
    collection,
    completion,
    embed,
    explain,
    segment,
    service,
    sources,
    status,
    usage,
)
from samclip.cli.parts import PARTS
from samclip.cli.usage import Parser

Add = Callable[[argparse.ArgumentParser], None]


def parser(whole: bool = False) -> Parser:
    """Return the parser of ``samclip``.

    whole: with the options of the commands in other modules too, as far as they are installed.
    """
    made = Parser(
        prog="samclip",
        description="Classify, segment and search images: one encoder, many heads.",
        examples=[
            'samclip classify cat.jpg --labels "a cat" "a dog"',
            "samclip segment photos/ --text cat --format coco > cats.json",
        ],
    )
    made.add_argument("--version", action="version", version=f"samclip {__version__}")
    subparsers = made.add_subparsers(title="commands", metavar="COMMAND [-h]", required=True)
    _add_image_commands(subparsers)
    _add_collection_commands(subparsers)
    for name, part in PARTS.items():  # otherwise only for --help: samclip.cli handles these
        own = completion.parser_of(name) if whole else None
        parents = [own] if own else []
        subparsers.add_parser(name, help=part.help, add_help=False, parents=parents)
    return made


def _add_image_commands(subparsers: Any) -> None:
    labels = "IMAGE … --labels TEXT … [options]"
    _add_about_images(
        *(subparsers, "classify", "rank labels for each image", classify.add, labels),
        examples=[
            'samclip classify cat.jpg --labels "a cat" "a dog"',
            "samclip classify photos/ --labels cat,dog --format csv > labels.csv",
        ],
    )
    _add_about_images(
        *(subparsers, "segment", "segment objects by points, boxes or texts"),
        *(segment.add_segment, "IMAGE … (--point X Y | --box … | --text PHRASE) [options]"),
        formats=segment.FORMATS,
        examples=[
            "samclip segment cat.jpg --point 200 60 --out out/",
            "samclip segment photos/ --text cat --format yolo --out cats/",
        ],
    )
    _add_about_images(
        *(subparsers, "semantic", "assign one of the labels to each pixel"),
        *(segment.add_semantic, labels),
        formats=segment.FORMATS,
        examples=[
            "samclip semantic street.jpg --labels road,car,sky --refine --out out/",
            'samclip semantic "photos/*.jpg" --labels cat blanket --format jsonl',
        ],
    )
    _add_about_images(
        *(subparsers, "explain", "show where the model sees a label, as a heat map"),
        *(explain.add, "IMAGE … --label TEXT [options]"),
        examples=[
            'samclip explain cat.jpg --label "a cat" --out out/',
            "samclip explain cat.jpg --label cat --others dog --out - > heat.png",
        ],
    )
    _add_about_images(
        *(subparsers, "everything", "segment every object", segment.add_everything),
        "IMAGE … [options]",
        formats=segment.FORMATS,
        examples=[
            "samclip everything cat.jpg --vocabulary coco --out out/",
            "samclip everything photos/ --labels cat,dog --format coco > objects.json",
        ],
    )
    _add_about_images(
        *(subparsers, "embed", "print the embeddings of images and texts", embed.add),
        "[IMAGE …] [--text TEXT …] [options]",
        examples=[
            "samclip embed photos/ --format jsonl > vectors.jsonl",
            'samclip embed --text "a cat" "a dog" --json',
        ],
    )


def _add_about_images(
    subparsers: Any,
    name: str,
    help: str,
    add: Add,
    form: str,
    *,
    formats: Sequence[str] = usage.ROWS,
    examples: Sequence[str],
) -> None:
    made = subparsers.add_parser(
        name, help=help, description=_sentence(help), usage=f"%(prog)s {form}", examples=examples
    )
    count = "*" if form.startswith("[IMAGE") else "+"
    made.add_argument("images", nargs=count, metavar="IMAGE", help=sources.HELP)
    made.set_defaults(key="image", command=name)
    add(made)
    usage.formats(made, formats)
    service.add_local(made)
    service.add_service(made)


def _add_collection_commands(subparsers: Any) -> None:
    _add(
        *(subparsers, "index", "add images to a collection", collection.add_index),
        [
            "samclip index pets photos/ --metadata owner=ann",
            "samclip index pets cat.jpg https://example.com/dog.jpg",
        ],
    )
    _add(
        *(subparsers, "search", "find images by a text or an image", collection.add_search),
        [
            'samclip search pets --text "a small animal" --where owner=ann',
            "samclip search pets --image cat.jpg --top-k 5 --json",
        ],
    )
    _add(
        *(subparsers, "delete", "delete images or a whole collection", collection.add_delete),
        ["samclip delete pets cat.jpg dog.jpg", "samclip delete pets --all --yes"],
    )
    _add(
        *(subparsers, "describe", "list collections", collection.add_describe),
        ["samclip describe", "samclip describe pets --json"],
    )
    _add(
        *(subparsers, "status", "show which service and model answer", status.add),
        ["samclip status", "samclip status --server gpu-1:9000 --json"],
    )
    completion.add(subparsers, lambda: parser(whole=True))


def _add(subparsers: Any, name: str, help: str, add: Add, examples: Sequence[str]) -> None:
    made = subparsers.add_parser(name, help=help, description=_sentence(help), examples=examples)
    add(made)
    usage.formats(made)
    service.add_service(made)


def _sentence(help: str) -> str:
    return f"{help[0].upper()}{help[1:]}."
