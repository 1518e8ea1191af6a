"""``samclip cache warm``: pictures are embedded, and indexed, before anybody asks about them.

Through the public client, so it runs anywhere: beside the service, or as a job on a cluster,
``ray job submit -- python -m services.cache.warm …``. What the service holds already costs a
look-up and no upload, so a run that was stopped goes on.
"""

import argparse
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

import fsspec
from samclip import Client, InvalidArgument, NotFound, ServiceError, cli
from tqdm import tqdm

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FILES_AT_ONCE = 32
LISTED_AT_ONCE = 1000


class Warmed(NamedTuple):
    """What was done, and what is wrong with the pictures that failed, by their ids."""

    done: int
    errors: dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Embed every picture of a source; return 0 when none failed."""
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
    cli.add_service(parser)
    args = parser.parse_args(argv)
    try:
        with cli.connect(args, bulk=True) as client:
            found = warm(client, args.source, args.collection)
    except (ServiceError, OSError, ValueError) as error:
        print(f"samclip cache warm: {error}", file=sys.stderr)
        return 1
    for id, message in found.errors.items():
        print(f"{id}: {message}", file=sys.stderr)
    print(f"{found.done} embedded, {len(found.errors)} failed")
    return 1 if found.errors else 0


def warm(client: Client, source: str, collection: str | None = None) -> Warmed:
    """Have the service embed every picture of ``source``, and index it under its path.

    Pictures that are broken are told, and do not stop the others. Raises ServiceError when the
    service itself fails, ValueError where there is no picture.
    """
    held = _held(client, collection) if collection else frozenset[str]()
    done, errors = 0, dict[str, str]()
    pictures = (picture for picture in _pictures(source) if picture[0] not in held)
    with tqdm(desc=source, unit="image") as progress, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        while some := dict(islice(pictures, FILES_AT_ONCE)):
            if collection:
                indexed = client.index(collection, some)
                done += indexed.indexed
                errors.update(indexed.errors)
            else:
                answers = pool.map(lambda encoded: _embed(client, encoded), some.values())
                wrong = {id: answer for id, answer in zip(some, answers, strict=True) if answer}
                done += len(some) - len(wrong)
                errors.update(wrong)
            progress.update(len(some))
    if not (done or errors or held):
        raise ValueError(f"no picture in {source}: expected {', '.join(SUFFIXES)}, or .tar of them")
    return Warmed(done, errors)


def _embed(client: Client, encoded: bytes) -> str:
    """What is wrong with the picture; empty when it is embedded."""
    try:
        client.image(encoded).embed()
    except InvalidArgument as error:
        return str(error)
    return ""


def _held(client: Client, collection: str) -> frozenset[str]:
    ids: list[str] = []
    try:
        while page := client.list_items(
            collection, after=ids[-1] if ids else "", limit=LISTED_AT_ONCE
        ):
            ids += [item.id for item in page]
    except NotFound:
        return frozenset()
    return frozenset(ids)


def _pictures(source: str) -> Iterator[tuple[str, bytes]]:
    """The path below ``source``, and the file, of each picture, also of those in shards."""
    files, folder = fsspec.url_to_fs(source)
    for path in sorted(files.find(folder)):
        name = PurePosixPath(path).relative_to(folder).as_posix()
        if name.lower().endswith(SUFFIXES):
            yield name, files.cat_file(path)
        elif name.endswith(".tar"):
            with files.open(path) as file, tarfile.open(fileobj=file, mode="r|") as shard:
                for member in shard:
                    content = shard.extractfile(member)
                    if content and member.name.lower().endswith(SUFFIXES):
                        yield f"{name}/{member.name}", content.read()


if __name__ == "__main__":
    sys.exit(main())
