"""``samclip embed``: the embeddings of images and texts."""

import argparse

from samclip.cli import answers, usage
from samclip.cli.formats import Answer, Row
from samclip.cli.usage import Command, UsageError
from samclip.client import Client
from samclip.photo import Photo


def _add(parser: argparse.ArgumentParser) -> None:
    usage.texts(parser, "--text", "texts to embed")
    parser.set_defaults(run=answers.over_images(_ask, _check, _texts), key="of")


def _check(args: argparse.Namespace) -> None:
    if not args.images and not args.text:
        raise UsageError("embed needs an IMAGE or --text TEXT")


def _ask(photo: Photo, args: argparse.Namespace) -> Answer:
    return Answer([{"vector": photo.embed().tolist()}])


def _texts(client: Client, args: argparse.Namespace) -> list[Row]:
    if not args.text:
        return []
    vectors = client.embed_text(args.text).tolist()
    return [{"of": text, "vector": vector} for text, vector in zip(args.text, vectors, strict=True)]


COMMAND = Command(
    "embed",
    "print the embeddings of images and texts",
    [
        "samclip embed photos/ --format jsonl > vectors.jsonl",
        'samclip embed --text "a cat" "a dog" --json',
    ],
    _add,
    images="[IMAGE …] [--text TEXT …] [options]",
)
