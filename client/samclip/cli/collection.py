"""``samclip index``, ``search``, ``delete`` and ``describe``: collections of images."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from samclip.cli import answers, formats, lake, saved, usage
from samclip.cli.answers import report, shown
from samclip.cli.formats import Answer
from samclip.cli.service import connect
from samclip.cli.usage import Command, UsageError
from samclip.client import Client
from samclip.errors import plain
from samclip.images import Source, check_ids
from samclip.many_photos import reason
from samclip.patience import each
from samclip.types import Collection, Indexed

FILES_AT_ONCE = 8  # per request, and per step of the progress bar
REQUESTS_AT_ONCE = 2

Batch = TypeVar("Batch", bound=Sized)


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION", help="its name")
    images = parser.add_argument(
        "images", nargs="+", default=[], metavar="IMAGE", help=answers.HELP
    )
    parser.add_argument(
        "--from",
        dest="lake",
        action=usage.InsteadOf,
        positional=images,
        metavar="URL",
        help="instead of images: the folder or URL that samclip batch --embed wrote to, whose "
        "vectors are stored as they are; a repeated run continues an interrupted one",
    )
    usage.pairs(parser, "--metadata", "metadata of each image; repeatable")
    parser.add_argument(
        "--objects",
        "--regions",
        action="store_true",
        help="also index the objects in the images, for search --objects; takes seconds per image, "
        "but none with --from: samclip batch --regions has found them",
    )
    usage.tiles(parser)
    parser.add_argument(
        "--no-thumbnails",
        dest="thumbnails",
        action="store_false",
        help="do not keep a small picture of each image, which the playground shows",
    )
    parser.set_defaults(run=_index)


def _index(args: argparse.Namespace) -> int:
    if args.images and args.lake is not None:
        raise UsageError("pass the images to index, or --from URL without images")
    if args.tiles and (args.lake is not None or not args.objects):
        raise UsageError("--tiles finds objects in images: add --objects, and no --from")
    if args.lake is not None:
        return _index_lake(args)
    found = answers.expand(args.images)
    check_ids(found)
    starts = range(0, len(found), FILES_AT_ONCE)
    batches = [found[start : start + FILES_AT_ONCE] for start in starts]
    with connect(args, bulk=True) as client:
        done = _each(batches, len(found), partial(_send, client, args), _read)
        return _report(args, client, done)


def _index_lake(args: argparse.Namespace) -> int:
    parts = lake.parts(args.lake, args.objects)
    batches = (rows for part in parts for rows in part.rows())
    if not args.thumbnails:
        bare = saved.without_thumbnail
        batches = (replace(rows, metadata=[*map(bare, rows.metadata)]) for rows in batches)
    with connect(args, bulk=True) as client:
        loader = lake.Loader(client, args.collection, dict(args.metadata), args.objects)
        total = sum(part.total for part in parts)
        done = _each(batches, total, loader.send)
        for warning in (*loader.warnings(done, args.lake), *lake.lacking(parts, args.lake)):
            print(plain(f"samclip: {warning}"), file=sys.stderr)
        failed = total - done.indexed - loader.skipped  # several may have one id
        return _report(args, client, done, failed=failed, skipped=loader.skipped)


def _each(
    batches: Iterable[Batch], total: int, send: Callable[[Any], Indexed], *read: Callable[..., Any]
) -> Indexed:
    """Send the batches, as ``read`` returns them; return what became of their items."""
    indexed, replaced, errors = 0, 0, dict[str, str]()
    with shown("indexing", total) as advance:
        for batch, future in each(batches, send, REQUESTS_AT_ONCE, *read):
            done = future.result()
            indexed, replaced = indexed + done.indexed, replaced + done.replaced
            errors |= done.errors
            advance(len(batch))
    return Indexed(indexed, errors, replaced)


def _report(args: argparse.Namespace, client: Client, done: Indexed, **more: int) -> int:
    """Print the counts and the errors; return the exit code."""
    writer = formats.writer(args)
    counts = {"indexed": done.indexed, "replaced": done.replaced, "failed": len(done.errors)}
    writer.add(Answer([{"collection": args.collection, **(counts | more)}]))
    for id, message in done.errors.items():
        report(writer, "id", id, message)
    writer.close(client.model)
    return 1 if done.errors else 0


def _read(batch: Sequence[Source]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files of a batch, and why others cannot be read, by their ids."""
    errors, files = dict[str, str](), dict[str, bytes]()
    for source in batch:
        try:
            files[source.id] = answers.read(source)
        except (OSError, ValueError) as error:
            errors[source.id] = reason(source.name, error)
    return files, errors


def _send(
    client: Client, args: argparse.Namespace, batch: tuple[dict[str, bytes], dict[str, str]]
) -> Indexed:
    files, errors = batch
    given = {"objects": args.objects, "tiles": args.tiles, "thumbnails": args.thumbnails}
    metadata = {id: dict(args.metadata) for id in files}
    done = client.index(args.collection, files, metadata=metadata, **given)
    return Indexed(done.indexed, {**errors, **done.errors}, done.replaced)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION", help="its name")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="images that this describes")
    query.add_argument("--image", help="images like this one: " + answers.HELP)
    query.add_argument("--id", help="images like this one of the collection")
    query.add_argument("--concept", metavar="NAME", help="images that show this concept")
    parser.add_argument(
        "--box",
        type=float,
        nargs=4,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="with --image: search by this part of it",
    )
    parser.add_argument(
        "--with-text",
        default="",
        metavar="TEXT",
        help="with --image or --id: prefer what this text describes as well",
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="best K images (10)")
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="skip the first N hits")
    parser.add_argument(
        "--min-score", type=float, default=0.0, metavar="X", help="leave out hits below this score"
    )
    parser.add_argument(
        "--objects",
        action="store_true",
        help="find images by their objects, and print the box of the best one in each; for images "
        "that were indexed with --objects",
    )
    usage.pairs(parser, "--where", "only images with this metadata; repeat to require several")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write hits.json, and the thumbnail of each hit that has one",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="the folder that was indexed: --out copies the images from there, and with "
        "--objects cuts the objects out",
    )
    parser.set_defaults(run=_search, columns=_columns)


def _columns(args: argparse.Namespace) -> list[str]:
    return ["id", "score", *(["box"] if args.objects else []), "metadata"]


def _search(args: argparse.Namespace) -> int:
    if args.root and not args.out:
        raise UsageError("--root says where the images of the hits are: add --out FOLDER")
    if str(args.out) == answers.STDIN:
        raise UsageError("--out writes several files: name their folder, not - for stdout")
    with connect(args) as client:
        hits = client.search(
            args.collection,
            text=args.text,
            image=None if args.image is None else answers.read(answers.one(args.image)),
            id=args.id,
            concept=args.concept,
            top_k=args.top_k,
            filter=dict(args.where),
            offset=args.offset,
            box=args.box,
            with_text=args.with_text,
            min_score=args.min_score,
            objects=args.objects,
        )
    rows = [
        {"id": hit.id, "score": hit.score}
        | ({"box": hit.box and list(hit.box)} if args.objects else {})
        | {"metadata": saved.without_thumbnail(hit.metadata)}
        for hit in hits
    ]
    paths = saved.save(hits, rows, client.model, args.out, args.root) if args.out else []
    return formats.print_rows(args, rows, client.model, paths)


def _add_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", metavar="COLLECTION", help="its name")
    parser.add_argument("ids", nargs="*", default=[], metavar="ID", help="images to delete")
    parser.add_argument(
        "--all", action="store_true", help="delete the whole collection; takes no IDs"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.set_defaults(run=_delete)


def _delete(args: argparse.Namespace) -> int:
    if bool(args.ids) == args.all:
        raise UsageError(
            "nothing was deleted: pass IDs to delete these images, or --all without IDs to delete "
            "the whole collection; scripts add --yes"
        )
    with connect(args) as client:
        if not args.yes:
            _confirm(client, args.collection, args.ids)
        deleted = client.delete(args.collection, args.ids, all=args.all)
    row = {"collection": args.collection, "deleted": deleted}
    return formats.print_rows(args, [row], client.model)


def _confirm(client: Client, name: str, ids: Sequence[str]) -> None:
    """Ask for confirmation. Raises ValueError if it is refused, or stdin is no terminal."""
    if not sys.stdin.isatty():
        raise ValueError("nothing was deleted: without a terminal to ask at, pass --yes")
    if ids:
        more = f" and {len(ids) - 3:,} more" if len(ids) > 3 else ""
        question = f"Delete {', '.join(ids[:3])}{more} from {name!r}? Type yes: "
        expected = "yes"
    else:
        (found,) = client.describe(name)
        question = f"Delete all {found.count:,} images of {name!r}? Type the collection's name: "
        expected = name
    print(plain(question), end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != expected:
        raise ValueError(f"nothing was deleted: the answer is not {expected!r}")


def _add_describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", nargs="?", default="", metavar="COLLECTION", help="one (all)")
    columns = [each.name for each in fields(Collection)]
    parser.set_defaults(run=_describe, columns=lambda args: columns)


def _describe(args: argparse.Namespace) -> int:
    with connect(args) as client:
        rows = [vars(collection) for collection in client.describe(args.collection)]
    return formats.print_rows(args, rows, client.model)


INDEX = Command(
    "index",
    "add images to a collection",
    [
        "samclip index pets photos/ --metadata owner=ann",
        "samclip index pets cat.jpg https://example.com/dog.jpg",
        "samclip index pets --from s3://bucket/lake --objects",
    ],
    _add_index,
    "COLLECTION (IMAGE … | --from URL) [options]",
)
SEARCH = Command(
    "search",
    "find images by a text or an image",
    [
        'samclip search pets --text "a small animal" --where owner=ann',
        "samclip search pets --image cat.jpg --top-k 5 --json",
        "samclip search pets --text cat --out found/ --root photos/",
    ],
    _add_search,
    "COLLECTION (--text | --image | --id | --concept) [options]",
)
DELETE = Command(
    "delete",
    "delete images or a whole collection",
    ["samclip delete pets cat.jpg dog.jpg", "samclip delete pets --all --yes"],
    _add_delete,
    "COLLECTION (ID … | --all) [options]",
)
DESCRIBE = Command(
    "describe",
    "list collections",
    ["samclip describe", "samclip describe pets --json"],
    _add_describe,
    "[COLLECTION] [options]",
)
