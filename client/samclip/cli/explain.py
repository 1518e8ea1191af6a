"""``samclip explain``: where the model sees a label."""

import argparse

from PIL import Image

from samclip import drawing
from samclip.cli import answers, usage
from samclip.cli.formats import Answer, Files
from samclip.cli.usage import Command
from samclip.images import read_pixels
from samclip.photo import Photo
from samclip.types import HeatMap


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label", required=True, metavar="TEXT", help="what to look for")
    usage.texts(parser, "--others", "show the label's probability against these instead")
    usage.out(parser, "write overlay.png, and heat.png of the levels")
    parser.set_defaults(run=answers.over_images(_ask))


def _ask(photo: Photo, args: argparse.Namespace) -> Answer:
    found = photo.explain(args.label, usage.split(args.others))
    y, x = divmod(int(found.levels.argmax()), found.levels.shape[1])
    row = {"label": args.label, "low": found.low, "high": found.high, "highest_at": [x, y]}
    return Answer([row], files=_draw(photo, found))


def _draw(photo: Photo, found: HeatMap) -> Files:
    yield "overlay.png", drawing.draw_heat(read_pixels(photo.encoded), found)
    yield "heat.png", Image.fromarray(found.levels)


COMMAND = Command(
    "explain",
    "show where the model sees a label, as a heat map",
    [
        'samclip explain cat.jpg --label "a cat" --out out/',
        "samclip explain cat.jpg --label cat --others dog --out - > heat.png",
    ],
    _add,
    images="IMAGE … --label TEXT [options]",
)
