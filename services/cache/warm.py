"""``samclip cache warm``: pictures are embedded, and indexed, before anybody asks about them.

Through the public client, so it runs anywhere: beside the service, or as a job on a cluster whose
workers share the source out, ``ray job submit -- python -m services.cache.warm … --workers 8``.
What the service holds already costs a look-up and no upload, so a run that was stopped goes on.
"""

import argparse
import functools
import json
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
from samclip import Client, InvalidArgument, NotFound, ServiceError, cli
from tqdm import tqdm

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FILES_AT_ONCE = 32
PART = 256  # pictures that a worker is given at once; a shard is a part as well
LISTED_AT_ONCE = 1000

Connect = Callable[[], Client]


class Warmed(NamedTuple):
    """What was done, and what is wrong with the pictures that failed, by their ids."""

    done: int
    errors: dict[str, str]


class WorkerFailed(RuntimeError):
    """The service or the source failed a worker of the job; the text says how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Embed every picture of a source; return 0 when none failed."""
    args = _parser().parse_args(argv)
    connect = functools.partial(cli.connect, args, bulk=True)
    try:
        found = warm(connect, args.source, args.collection, args.workers)
    except (ServiceError, OSError, ValueError, WorkerFailed) as error:
        print(f"samclip cache warm: {error}", file=sys.stderr)
        return 1
    for id, message in found.errors.items():
        print(f"{id}: {message}", file=sys.stderr)
    print(f"{found.done} embedded, {len(found.errors)} failed")
    return 1 if found.errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="samclip cache warm",
        description="Embed pictures before anybody asks about them, and index them.",
        epilog="A run that was stopped goes on: what the service holds is not sent again.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of pictures or of WebDataset shards (.tar), as path or fsspec URL",
    )
    parser.add_argument("--collection", metavar="NAME", help="index them here, by their paths")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="as a Ray Data job on so many workers"
    )
    cli.add_service(parser)
    return parser


def warm(
    connect: Connect, source: str, collection: str | None = None, workers: int | None = None
) -> Warmed:
    """Have the service embed every picture of ``source``, and index it under its path.

    Here, or by ``workers`` of the Ray that this runs in, each with a connection of its own. What is
    broken is told, and does not stop the rest. Raises ServiceError when the service itself fails,
    WorkerFailed when it fails a worker, ValueError where there is no picture.
    """
    with connect() as client:
        have = held(client, collection) if collection else frozenset[str]()
    embed = functools.partial(_embed, connect, source, collection, have)
    parts, done, errors = _parts(source), 0, dict[str, str]()
    by_32 = _share_out(embed, parts, workers) if workers else (w for p in parts for w in embed(p))
    with tqdm(desc=source, unit="image") as progress:
        for some in by_32:
            done += some.done
            errors.update(some.errors)
            progress.update(some.done + len(some.errors))
    if not (done or errors or have):
        raise ValueError(f"no picture in {source}: expected {', '.join(SUFFIXES)}, or .tar of them")
    return Warmed(done, errors)


def _share_out(
    embed: Callable[[Sequence[str]], Iterator[Warmed]],
    parts: Iterator[Sequence[str]],
    workers: int,
) -> Iterator[Warmed]:
    """A Ray Data job: its workers wait for the service, so that they need no cores."""
    try:
        import ray.data  # not above: the rest does without
    except ImportError as error:
        raise WorkerFailed(f"no Ray Data is installed ({error}): install samclip[train]") from error

    def work(row: dict[str, Any]) -> dict[str, str]:
        try:
            found = [*embed(json.loads(row["part"]))]
        except (ServiceError, OSError) as error:
            return {"failure": str(error), "found": "[]"}
        return {"failure": "", "found": json.dumps(found)}

    todo = [{"part": json.dumps(part)} for part in parts]  # Arrow's text has no stray bytes
    job = ray.data.from_items(todo, override_num_blocks=len(todo) or 1).map(
        work, compute=ray.data.TaskPoolStrategy(size=workers), num_cpus=0
    )
    for row in job.iter_rows():
        if row["failure"]:
            raise WorkerFailed(row["failure"])
        yield from (Warmed(*some) for some in json.loads(row["found"]))


def _embed(
    connect: Connect,
    source: str,
    collection: str | None,
    held: frozenset[str],
    part: Sequence[str],
) -> Iterator[Warmed]:
    """Embed a part of the source, some pictures at a time."""
    broken: dict[str, str] = {}
    pictures = (one for one in _pictures(source, part, broken) if one[0] not in held)
    with connect() as client, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        while some := dict(islice(pictures, FILES_AT_ONCE)):
            if collection:
                indexed = client.index(collection, some)
                yield Warmed(indexed.indexed, dict(indexed.errors))
            else:
                answers = pool.map(lambda encoded: _wrong(client, encoded), some.values())
                errors = {id: answer for id, answer in zip(some, answers, strict=True) if answer}
                yield Warmed(len(some) - len(errors), errors)
    yield Warmed(0, broken)


def _wrong(client: Client, encoded: bytes) -> str:
    """What is wrong with the picture; empty when it is embedded."""
    try:
        client.image(encoded).embed()
    except (InvalidArgument, ValueError) as error:
        return str(error)
    return ""


def held(client: Client, collection: str) -> frozenset[str]:
    """The ids of what a collection holds; none where there is no such collection."""
    ids: list[str] = []
    try:
        while page := client.list_items(
            collection, after=ids[-1] if ids else "", limit=LISTED_AT_ONCE
        ):
            ids += [item.id for item in page]
    except NotFound:
        return frozenset()
    return frozenset(ids)


def _parts(source: str) -> Iterator[list[str]]:
    """The paths below ``source``: some pictures, or one shard."""
    files, folder = fsspec.url_to_fs(source)
    names = [PurePosixPath(path).relative_to(folder).as_posix() for path in files.find(folder)]
    pictures = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    yield from (pictures[i : i + PART] for i in range(0, len(pictures), PART))
    yield from ([name] for name in sorted(names) if name.endswith(".tar"))


def _pictures(
    source: str, part: Sequence[str], broken: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    """The path below ``source``, and the file, of each picture, also of those in a shard.

    Files that cannot be read, and shards that cannot be read to their end, are added to ``broken``.
    """
    files, folder = fsspec.url_to_fs(source)
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


def _members(
    shard: tarfile.TarFile, name: str, broken: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    """The pictures of a shard; members that are no files or share a name are in ``broken``."""
    seen: set[str] = set()
    for member in shard:
        if not member.name.lower().endswith(SUFFIXES):
            continue
        id = f"{name}/{member.name}"
        content = shard.extractfile(member) if member.isfile() else None
        if content is None:
            broken[id] = "a folder or link, expected a file: replace it in the shard"
        elif id in seen:
            broken[id] = "the shard has two pictures of this name: the first was used, rename one"
        else:
            seen.add(id)
            yield id, content.read()


if __name__ == "__main__":
    sys.exit(main())
