"""``samclip cache warm``: embed images in advance.

It uses the public client, so it may run on any machine. A known image costs a lookup and no upload,
so a run that was stopped can be repeated.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from threading import Event, Lock
from typing import Any

from samclip import Client, Indexed, InvalidArgument, ServiceError
from samclip.cli import service
from samclip.cli.usage import Parser
from samclip.errors import plain
from samclip.many_photos import reason
from tqdm import tqdm

from services.sources.item import Columns, Item, Part
from services.sources.listing import items, parts

WORKERS = 8
FILES_AT_ONCE = 16
"""Images that a thread holds; a part of a folder has as many, a shard is one part."""

Connect = Callable[[], Client]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``samclip cache warm``; return 0 if all images were embedded."""
    args = parser().parse_args(argv)
    connect = functools.partial(service.connect, args, bulk=True)
    try:
        found = warm(connect, args.source, args.workers, _outputs(args))
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
        type=_workers,
        default=WORKERS,
        metavar="N",
        help=f"threads that read and send images ({WORKERS}); more for a service with a GPU or "
        "several replicas",
    )
    service.add_service(made)
    return made


def _workers(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def report(found: Indexed, summary: str) -> int:
    """Print the images that failed, and the summary; return the exit code."""
    for id, message in found.errors.items():
        print(plain(f"{id}: {message}"), file=sys.stderr)
    print(f"{summary}, {len(found.errors)} failed")
    return 1 if found.errors else 0


def warm(
    connect: Connect,
    source: str,
    workers: int = WORKERS,
    outputs: Sequence[str] = ("clip_pooled",),
) -> Indexed:
    """Have the service embed all images below ``source``.

    Images that fail are reported and do not stop the others. ``outputs`` are as in
    ``Photo.features``. Raises ServiceError if the service fails, OSError and ValueError if the
    source cannot be listed or has no images.
    """
    with (
        connect() as client,
        tqdm(desc=source, unit="image") as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        run = _Run(client, outputs, progress)
        try:
            for _ in pool.map(run.embed, parts([source], Columns(), FILES_AT_ONCE)):
                pass
        finally:
            run.stopped.set()
    if not (run.done or run.errors):
        raise ValueError(f"{source}: no images found")
    return Indexed(run.done, run.errors)


@dataclass
class _Run:
    """The work of the threads, and their findings so far."""

    client: Client
    outputs: Sequence[str]
    progress: Any
    done: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    stopped: Event = field(default_factory=Event)
    lock: Lock = field(default_factory=Lock)

    def embed(self, part: Part) -> None:
        """Embed a part of the source, FILES_AT_ONCE images at a time."""
        images = iter(items(part))
        while not self.stopped.is_set() and (several := [*islice(images, FILES_AT_ONCE)]):
            batch, broken = _read(several)
            answers = {id: _wrong(self.client, file, self.outputs) for id, file in batch.items()}
            errors = broken | {id: answer for id, answer in answers.items() if answer}
            with self.lock:
                self.done += len(several) - len(errors)
                self.errors.update(errors)
                self.progress.update(len(several))


def _read(several: Sequence[Item]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files of images, and the reasons why some cannot be read, by their ids."""
    files, broken = dict[str, bytes](), dict[str, str]()
    for item in several:
        try:
            files[item.id] = item.read()
        except Exception as error:  # an image may hold anything
            broken[item.id] = reason(item.source, error)
    return files, broken


def _wrong(client: Client, encoded: bytes, outputs: Sequence[str]) -> str:
    """Embed an image; return its error, or "" if it was embedded."""
    try:
        client.image(encoded).features(*outputs, inline=False)
    except (InvalidArgument, ValueError) as error:
        return str(error)
    return ""


def _outputs(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the outputs to compute: all of the encoder for masks, which annotators need."""
    if args.regions:
        return "clip_pooled", "regions"
    return () if args.masks else ("clip_pooled",)


if __name__ == "__main__":
    sys.exit(main())
