"""``samclip ask``: what a head of one's own answers about each image."""

import argparse
import io
from typing import Any

import numpy as np
from PIL import Image

from samclip.cli import answers, usage
from samclip.cli.formats import Answer, Files
from samclip.cli.segment import mask_files
from samclip.cli.usage import Command, UsageError
from samclip.images import read_pixels
from samclip.masks import Mask, Masks, within
from samclip.photo import Photo


def _add(parser: argparse.ArgumentParser) -> None:
    usage.pairs(parser, "--set", "a parameter of the head; repeat for others, or for a list")
    help = "write overlay.png, mask-NNN.png, picture-NNN.png and array-NNN.npy"
    usage.out(parser, help)
    parser.add_argument(
        "--head",
        dest="spec",
        metavar="SPEC",
        help="with --local: FILE.py:CLASS, MODULE:CLASS or FOLDER, as of samclip serve --head",
    )
    parser.set_defaults(run=answers.over_images(_ask, _check))


def _check(args: argparse.Namespace) -> None:
    if bool(args.local) != bool(args.spec):
        raise UsageError(
            "--local and --head SPEC belong together: a service has the heads of samclip serve "
            "--head, which samclip status lists"
        )


def _ask(photo: Photo, args: argparse.Namespace) -> Answer:
    given: dict[str, list[str]] = {}
    for name, text in args.set:
        given.setdefault(name, []).append(text)
    parameters: dict[str, Any] = {
        name: texts if len(texts) > 1 else texts[0] for name, texts in given.items()
    }
    found = photo.ask(args.head, **parameters)
    # The first column names the image.
    row = {f"answer.{name}" if name == args.key else name: each for name, each in found.items()}
    return Answer([row], files=_files(photo, found))


def _files(photo: Photo, found: dict[str, Any]) -> Files:
    masks, pictures = Masks(within(found, Mask)), [*within(found, Image.Image)]
    if masks or not pictures:
        yield "overlay.png", masks.draw(read_pixels(photo.encoded), names=False)
    yield from mask_files(masks)
    for number, picture in enumerate(pictures):
        yield f"picture-{number:03d}.png", picture
    for number, array in enumerate(within(found, np.ndarray)):
        file = io.BytesIO()
        np.save(file, array)
        yield f"array-{number:03d}.npy", file.getvalue()


ASK = Command(
    "ask",
    "ask a head of your own, which samclip serve --head serves",
    [
        "samclip ask ripeness photos/ --set at_least=.7 --format csv",
        "samclip ask ripeness apple.jpg --local --head ripeness.py:Ripeness",
    ],
    _add,
    "HEAD IMAGE … [--set KEY=VALUE …] [options]",
    about_images=True,
    first=("HEAD", "its name, of those that samclip status lists"),
)
