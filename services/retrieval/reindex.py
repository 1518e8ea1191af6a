"""``samclip reindex``: index a collection's images again, into a new collection.

Vectors of different checkpoints cannot be compared, and a collection cannot mix precisions. After a
change of either, or for another model of the service (--model), the service still lists the items
of the old collection; this command reads their images from a folder and has the service embed them
anew, with their objects if the old collection has objects. A collection does not know whether these
were found in tiles: give --tiles again. Items that are already in the new collection are skipped,
so an interrupted run can be resumed.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from samclip import Client, Indexed, ListedItem, NotFound, ServiceError
from samclip.cli import places, service, usage
from samclip.cli.usage import Parser
from samclip.types import Tiles
from tqdm import tqdm

from services.cache import warm

LISTED_AT_ONCE = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every item is in the new collection."""
    args = parser().parse_args(argv)
    try:
        with service.connect(args) as client:
            done = reindex(client, args.source, args.target, args.root, args.tiles)
    except (ServiceError, OSError, ValueError) as error:
        print(f"samclip reindex: {error}", file=sys.stderr)
        return 1
    return warm.report(done, f"{args.target}: {done.indexed} indexed")


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip reindex",
        description="Index a collection's images again, under a new name, for another checkpoint\n"
        "or precision. A repeated run continues an interrupted one. Give --tiles if the objects\n"
        "of OLD were found in tiles.",
        examples=[
            "samclip reindex pets pets-2 --root photos/",
            "samclip reindex pets pets-2 --root s3://bucket/photos --model mobile",
        ],
    )
    made.add_argument("source", metavar="OLD", help="collection of any checkpoint and precision")
    made.add_argument("target", metavar="NEW", help="collection to create or to continue")
    made.add_argument(
        "--root",
        required=True,
        metavar="FOLDER",
        help="path or fsspec URL of the folder with the images; ids are paths below it",
    )
    usage.tiles(made)
    service.add_service(made)
    return made


def reindex(client: Client, source: str, target: str, root: str, tiles: Tiles = 0) -> Indexed:
    """Index the items that ``target`` lacks, with their metadata, from images below ``root``.

    The client's model is that of ``target``; ``source`` is of any. ``tiles`` as in
    ``client.index``, if ``source`` has objects. Missing and broken images are
    reported in the result and do not stop the others. Raises ServiceError.
    """
    if source == target:
        raise ValueError("the new collection needs another name than the old one")
    of_any = client.using("")
    (old,) = of_any.describe(source)
    known = held(client, target)
    indexed, errors = 0, dict[str, str]()
    found: Any = {"objects": True, "tiles": tiles} if old.objects else {}
    with tqdm(total=old.count, desc=target, unit="image") as progress:
        for page in pages(of_any, source, warm.FILES_AT_ONCE):
            images = dict[str, bytes]()
            metadata = {item.id: item.metadata for item in page if item.id not in known}
            for id in metadata:
                try:
                    images[id] = _read(root, id)
                except (OSError, ValueError) as error:
                    errors[id] = str(error)
            done = client.index(target, images, metadata=metadata, thumbnails=False, **found)
            indexed += done.indexed
            errors.update(done.errors)
            progress.update(len(page))
    return Indexed(indexed, errors)


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


def _read(root: str, id: str) -> bytes:
    """Read the file of an id. Ids are untrusted, so paths outside the folder are refused."""
    path = PurePosixPath(id)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("its id is not a path below the root")
    return places.read(f"{root.rstrip('/')}/{id}")


if __name__ == "__main__":
    sys.exit(main())
