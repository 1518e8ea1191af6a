"""``samclip cache warm``: embed images in advance, and optionally index them.

It uses the public client, so it runs beside the service or as a job on a cluster, whose workers
split the source: ``ray job submit --working-dir . -- python -m services.cache.warm … --workers 8``.
A known image costs a lookup and no upload, so a run that was stopped can be repeated.
"""

import argparse
import functools
import json
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from samclip import Client, Indexed, InvalidArgument, ListedItem, NotFound, ServiceError
from samclip.cli import service
from samclip.cli.usage import Parser
from samclip.errors import plain
from tqdm import tqdm

from samclip_core.io.image import SUFFIXES
from services.cache.projects import Cvat, Images, LabelStudio, Pictures

FILES_AT_ONCE = 32
PART = 256  # images per part of a source; a shard is one part
LISTED_AT_ONCE = 1000

Connect = Callable[[], Client]


class WorkerFailed(RuntimeError):
    """A worker of the job got an error from the service or the source."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``samclip cache warm``; return 0 if all images were embedded."""
    args = parser().parse_args(argv)
    connect = functools.partial(service.connect, args, bulk=True)
    try:
        found = warm(connect, _images(args), args.collection, args.workers, _outputs(args))
    except (ServiceError, OSError, ValueError, WorkerFailed) as error:
        print(f"samclip cache warm: {error}", file=sys.stderr)
        return 1
    return report(found, f"{found.indexed} embedded")


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip cache warm",
        description="Embed images in advance, and index them in a collection if one is given. A\n"
        "repeated run does not send known images again, so it can finish a stopped run.",
        examples=[
            "samclip cache warm photos/ --collection pets",
            "samclip cache warm s3://bucket/shards --workers 4",
            "samclip cache warm --cvat http://cvat.example/tasks/7 --token-file cvat.token",
        ],
    )
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="folder of images or of WebDataset shards (.tar), as path or fsspec URL",
    )
    which.add_argument(
        "--label-studio", metavar="URL", help="a project's address, as the browser shows it"
    )
    which.add_argument("--cvat", metavar="URL", help="the same for a project or a task in CVAT")
    made.add_argument("--token-file", type=Path, metavar="FILE", help="token of that tool")
    made.add_argument(
        "--masks",
        action="store_true",
        help="embed for masks too, as always for a tool's project; without, for search and labels",
    )
    made.add_argument(
        "--collection", metavar="NAME", help="index the images here, under their paths"
    )
    made.add_argument(
        "--regions",
        action="store_true",
        help="search the regions of each image too, for texts and everything; in a collection, "
        "also index its objects",
    )
    made.add_argument("--workers", type=int, metavar="N", help="run as a Ray Data job on N workers")
    service.add_service(made)
    return made


def report(found: Indexed, summary: str) -> int:
    """Print the images that failed, and the summary; return the exit code."""
    for id, message in found.errors.items():
        print(plain(f"{id}: {message}"), file=sys.stderr)
    print(f"{summary}, {len(found.errors)} failed")
    return 1 if found.errors else 0


def warm(
    connect: Connect,
    source: Images,
    collection: str | None = None,
    workers: int | None = None,
    outputs: Sequence[str] = ("clip_pooled",),
) -> Indexed:
    """Have the service embed all images of ``source``, and index them under their ids.

    Runs here, or on ``workers`` of the current Ray, each with its own connection. Images that fail
    are reported and do not stop the others. ``outputs`` are as in ``Photo.features``; with regions,
    objects are indexed too. Raises ServiceError if the service fails, WorkerFailed if it fails in a
    worker, OSError and ValueError if the source cannot be listed or has no images.
    """
    with connect() as client:
        known = held(client, collection) if collection else frozenset[str]()
    embed = functools.partial(_embed, connect, source, collection, known, outputs)
    parts, done, errors = source.parts(), 0, dict[str, str]()
    batches = _share_out(embed, parts, workers) if workers else (b for p in parts for b in embed(p))
    with tqdm(desc=str(source), unit="image") as progress:
        for batch in batches:
            done += batch.indexed
            errors.update(batch.errors)
            progress.update(batch.indexed + len(batch.errors))
    if not (done or errors or known):
        raise ValueError(f"no images in {source}: expected {', '.join(SUFFIXES)}, or .tar of them")
    return Indexed(done, errors)


def _share_out(
    embed: Callable[[Sequence[str]], Iterator[Indexed]],
    parts: Iterator[Sequence[str]],
    workers: int,
) -> Iterator[Indexed]:
    """Run ``embed`` as a Ray Data job. The workers wait for the service, so they need no cores."""
    try:
        import ray.data  # only a job needs it
    except ImportError as error:
        hint = "in a clone, run pip install -e '.[train]'"
        raise WorkerFailed(f"Ray Data is missing ({error}): {hint}") from error

    def work(row: dict[str, Any]) -> dict[str, str]:
        try:
            found = [asdict(batch) for batch in embed(json.loads(row["part"]))]
        except (ServiceError, OSError) as error:
            return {"failure": str(error), "found": "[]"}
        return {"failure": "", "found": json.dumps(found)}

    todo = [{"part": json.dumps(part)} for part in parts]  # Arrow needs valid UTF-8
    job = ray.data.from_items(todo, override_num_blocks=len(todo) or 1).map(
        work, compute=ray.data.TaskPoolStrategy(size=workers), num_cpus=0
    )
    for row in job.iter_rows():
        if row["failure"]:
            raise WorkerFailed(row["failure"])
        yield from (Indexed(**batch) for batch in json.loads(row["found"]))


def _embed(
    connect: Connect,
    source: Images,
    collection: str | None,
    known: frozenset[str],
    outputs: Sequence[str],
    part: Sequence[str],
) -> Iterator[Indexed]:
    """Embed a part of the source, FILES_AT_ONCE images at a time, without those ``known``."""
    broken: dict[str, str] = {}
    images = ((id, file) for id, file in source.pictures(part, broken) if id not in known)
    with connect() as client, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        while batch := dict(islice(images, FILES_AT_ONCE)):
            errors = dict[str, str]()
            if not collection or not outputs:  # a collection needs no embeddings for masks
                answers = pool.map(lambda encoded: _wrong(client, encoded, outputs), batch.values())
                errors = {id: answer for id, answer in zip(batch, answers, strict=True) if answer}
            if collection:  # it finds the same errors
                yield client.index(collection, batch, objects="regions" in outputs)
            else:
                yield Indexed(len(batch) - len(errors), errors)
    yield Indexed(0, broken)


def _wrong(client: Client, encoded: bytes, outputs: Sequence[str]) -> str:
    """Embed an image; return its error, or "" if it was embedded."""
    try:
        client.image(encoded).features(*outputs, inline=False)
    except (InvalidArgument, ValueError) as error:
        return str(error)
    return ""


def held(client: Client, collection: str) -> frozenset[str]:
    """Return the ids of the items in a collection; none if it does not exist."""
    try:
        found = pages(client, collection, LISTED_AT_ONCE)
        return frozenset(item.id for page in found for item in page)
    except NotFound:
        return frozenset()


def pages(client: Client, collection: str, size: int) -> Iterator[list[ListedItem]]:
    """Yield the items of a collection, ``size`` at a time. Raises NotFound."""
    after = ""
    while page := client.list_items(collection, after=after, limit=size):
        yield page
        after = page[-1].id


@dataclass(frozen=True)
class Folder:
    """Images, and shards of images, below a path or fsspec URL; see ``Images``."""

    url: str

    def parts(self) -> Iterator[Sequence[str]]:
        """Yield paths below the folder: of up to PART images, or of one shard."""
        files, folder = fsspec.url_to_fs(self.url)
        names = [PurePosixPath(path).relative_to(folder).as_posix() for path in files.find(folder)]
        pictures = sorted(name for name in names if name.lower().endswith(SUFFIXES))
        yield from (pictures[i : i + PART] for i in range(0, len(pictures), PART))
        yield from ([name] for name in sorted(names) if name.endswith(".tar"))

    def pictures(self, part: Sequence[str], broken: dict[str, str]) -> Pictures:
        """Yield the path below the folder and the file of each image, those in shards included.

        Adds files and shards that cannot be read completely to ``broken``.
        """
        files, folder = fsspec.url_to_fs(self.url)
        for name in part:
            path = f"{folder}/{name}"
            try:
                if name.endswith(".tar"):
                    with files.open(path) as file, tarfile.open(fileobj=file, mode="r|") as shard:
                        yield from _members(shard, name, broken)
                else:
                    yield name, files.cat_file(path)
            except tarfile.TarError as error:
                broken[name] = f"the shard cannot be read to its end: {error}"
            except OSError as error:
                broken[name] = str(error)

    def __str__(self) -> str:
        return self.url


def _outputs(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the outputs to compute: all of the encoder for masks, which annotators need."""
    if args.regions:
        return "clip_pooled", "regions"
    return () if args.masks or args.source is None else ("clip_pooled",)


def _images(args: argparse.Namespace) -> Images:
    """Return the images that the options name. Raises OSError and ValueError."""
    if args.source is not None:
        return Folder(args.source)
    if args.token_file is None:
        raise ValueError("no token: write one of the tool's into a file, and give --token-file")
    token = args.token_file.read_text().strip()
    if not (token.isascii() and token.isprintable() and token):
        raise ValueError(f"{args.token_file} holds no token: expected one line of ASCII")
    return Cvat.of(args.cvat, token) if args.cvat else LabelStudio.of(args.label_studio, token)


def _members(
    shard: tarfile.TarFile, name: str, broken: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    """Yield the images of a shard. Adds members that are no files or share a name to ``broken``."""
    ids: set[str] = set()
    for member in shard:
        if not member.name.lower().endswith(SUFFIXES):
            continue
        id = f"{name}/{member.name}"
        content = shard.extractfile(member) if member.isfile() else None
        if content is None:
            broken[id] = "a folder or link, expected a file: replace it in the shard"
        elif id in ids:
            broken[id] = "the shard has two images of this name: the first was used, rename one"
        else:
            ids.add(id)
            yield id, content.read()


if __name__ == "__main__":
    sys.exit(main())
