"""``samclip cache warm``: embed images in advance.

It uses the public client, so it may run on any machine. A known image costs a lookup and no upload,
so a run that was stopped can be repeated.
"""

import argparse
import math
import sys
from collections.abc import Sequence

from samclip import Client, Indexed, InvalidArgument, Photo, ServiceError
from samclip.cli import service, usage
from samclip.cli.usage import Parser
from samclip.errors import plain
from samclip.many_photos import AT_ONCE, reason
from samclip.patience import each
from tqdm import tqdm

from services.sources.item import Columns, Item
from services.sources.listing import items, parts

FILES_AT_ONCE = 16
"""Images of a part of a folder; a shard is one part."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``samclip cache warm``; return 0 if all images were embedded."""
    args = parser().parse_args(argv)
    try:
        with service.connect(args, bulk=True) as client:
            found = warm(client, args.source, args.workers, _outputs(args))
    except (ServiceError, OSError, ValueError) as error:
        print(plain(f"samclip cache warm: {error}"), file=sys.stderr)
        return 1
    return report(found, f"{found.indexed} embedded")


def parser() -> Parser:
    made = Parser(
        prog="samclip cache warm",
        description="Embed images in advance. A repeated run does not send known images\n"
        "again, so it can finish a stopped run.",
        examples=[
            "samclip cache warm photos/",
            "samclip cache warm s3://bucket/shards --masks --workers 32",
        ],
    )
    made.add_argument(
        "source",
        metavar="SOURCE",
        help="what samclip batch reads: file, folder, quoted glob or fsspec URL of images, of "
        "WebDataset shards (.tar) or of tables (.parquet, .jsonl, .txt)",
    )
    made.add_argument(
        "--masks", action="store_true", help="embed for masks too; without, for search and labels"
    )
    made.add_argument(
        "--regions",
        action="store_true",
        help="search the regions of each image too, for texts and everything",
    )
    made.add_argument(
        "--workers",
        type=usage.positive,
        default=AT_ONCE,
        metavar="N",
        help=f"threads that read and send images ({AT_ONCE}); more for a service with a GPU or "
        "several replicas",
    )
    service.add_service(made, math.inf)
    return made


def report(found: Indexed, summary: str) -> int:
    """Print the images that failed, and the summary; return the exit code."""
    for id, message in found.errors.items():
        print(plain(f"{id}: {message}"), file=sys.stderr)
    print(f"{summary}, {len(found.errors)} failed")
    return 1 if found.errors else 0


def warm(client: Client, source: str, workers: int, outputs: Sequence[str]) -> Indexed:
    """Have the service embed all images below ``source``.

    Images that fail are reported and do not stop the others. ``outputs`` are as in
    ``Photo.features``. Raises ServiceError if the service fails, OSError and ValueError if the
    source cannot be listed or has no images.
    """
    images = (item for part in parts([source], Columns(), FILES_AT_ONCE) for item in items(part))
    done, errors = 0, dict[str, str]()
    with tqdm(desc=source, unit="image") as progress:

        def photo_of(item: Item) -> Photo:
            return client.image(item.read())

        def embed(photo: Photo) -> None:
            photo.features(*outputs, inline=False)

        for item, answer in each(images, embed, workers, photo_of):
            try:
                answer.result()
                done += 1
            except Exception as error:  # an image may hold anything
                if isinstance(error, ServiceError) and not isinstance(error, InvalidArgument):
                    raise
                errors[item.id] = reason(item.source, error)
            progress.update()
    if not (done or errors):
        raise ValueError(f"{source}: no images found")
    return Indexed(done, errors)


def _outputs(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the outputs to compute: all of the encoder for masks, which annotators need."""
    if args.regions:
        return "clip_pooled", "regions"
    return () if args.masks else ("clip_pooled",)


if __name__ == "__main__":
    sys.exit(main())
