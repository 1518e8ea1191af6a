"""``samclip reindex``: a collection's pictures indexed again, into a collection of another name.

Vectors of two checkpoints do not compare, and vectors of two precisions are not mixed. After a
change of either, the running service still lists what the old collection holds; its pictures are
read from where they are, and embedded as the service does now.
What is in the new collection already is left alone, so a run that was stopped goes on.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import fsspec
from fsspec import AbstractFileSystem
from samclip import Client, Indexed, ListedItem, ServiceError, cli
from tqdm import tqdm

from services.cache import warm

FILES_AT_ONCE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Index again; return 0 when every item is in the new collection."""
    parser = argparse.ArgumentParser(
        prog="samclip reindex",
        description="Index a collection's pictures again for another checkpoint or precision, "
        "under a new name.",
    )
    parser.add_argument("source", metavar="OLD", help="collection of any checkpoint and precision")
    parser.add_argument("target", metavar="NEW", help="collection to make, or to go on with")
    parser.add_argument(
        "--root",
        required=True,
        metavar="FOLDER",
        help="where the pictures are, as path or fsspec URL: ids are paths below it",
    )
    cli.add_service(parser)
    args = parser.parse_args(argv)
    try:
        with cli.connect(args) as client:
            done = reindex(client, args.source, args.target, args.root)
    except (ServiceError, OSError, ValueError) as error:
        print(f"samclip reindex: {error}", file=sys.stderr)
        return 1
    for id, message in done.errors.items():
        print(f"{id}: {message}", file=sys.stderr)
    print(f"{args.target}: {done.indexed} indexed, {len(done.errors)} failed")
    return 1 if done.errors else 0


def reindex(client: Client, source: str, target: str, root: str) -> Indexed:
    """Index what ``target`` lacks of ``source``, with its metadata, from pictures below ``root``.

    Pictures that are missing or broken are told, and do not stop the others. Raises ServiceError.
    """
    if source == target:
        raise ValueError("the new collection needs another name than the old one")
    (old,) = client.describe(source)
    held = warm.held(client, target)
    files, folder = fsspec.url_to_fs(root)
    indexed, errors = 0, dict[str, str]()
    with tqdm(total=old.count, desc=target, unit="image") as progress:
        for page in _pages(client, source):
            images = dict[str, bytes]()
            metadata = {item.id: item.metadata for item in page if item.id not in held}
            for id in metadata:
                try:
                    images[id] = _read(files, folder, id)
                except (OSError, ValueError) as error:
                    errors[id] = str(error)
            done = client.index(target, images, metadata=metadata)
            indexed += done.indexed
            errors.update(done.errors)
            progress.update(len(page))
    return Indexed(indexed, errors)


def _pages(client: Client, collection: str) -> Iterator[list[ListedItem]]:
    after = ""
    while page := client.list_items(collection, after=after, limit=FILES_AT_ONCE):
        yield page
        after = page[-1].id


def _read(files: AbstractFileSystem, folder: str, id: str) -> bytes:
    """The file of an id, which whoever may index has chosen: never one outside of the folder."""
    path = PurePosixPath(id)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("its id is no path below the root")
    return bytes(files.cat_file(f"{folder}/{id}"))


if __name__ == "__main__":
    sys.exit(main())
