"""``samclip batch``: answers about any number of images, as tables, on one machine or a cluster."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from samclip import wire
from samclip.cli import usage
from samclip.cli.formats import table
from samclip.cli.usage import Parser
from samclip.errors import plain

from samclip_core.answers.tiles import AUTO, check_tiles, is_tiled
from samclip_core.engine.processor import cores
from samclip_core.errors import SamClipError
from samclip_core.io.checkpoint import shown
from samclip_core.io.folder import Folder
from services.lake import into, job
from services.lake.answers import TILED
from services.lake.plan import Plan
from services.lake.tables import FAILURES
from services.settings import Settings
from services.sources.item import Columns

INCOMPLETE = 3
"""Exit code if the result lacks images of its sources, and another run may find them."""
EXPLAINED = (
    SamClipError,
    job.TooManyFailures,
    job.WorkerFailed,
    OSError,
    ImportError,  # of a package for a store
    ValueError,  # of a source, a plan or a setting
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``samclip batch``; return the exit code."""
    made = parser()
    args = made.parse_args(argv)
    work = _work(args)
    asked = ("embed", "labels", *TILED)
    if not args.head and not any(work[name] for name in asked):
        made.error(
            "nothing to do: give --embed, --labels, --text, --everything, --semantic, --regions or "
            "--head"
        )
    if args.into is not None and not args.embed:
        made.error("--into stores the vectors of --embed: add that")
    if args.tiles and not any(work[name] for name in TILED):
        made.error("--tiles is for --text, --everything, --semantic and --regions: add one of them")
    start = time.monotonic()
    try:
        asked_for = _job(args, work)
        if args.into is not None:
            into.check(args.into)
        result = job.run(
            asked_for, shown=sys.stderr.isatty(), ready=into.opened if args.into else None
        )
        stored = _stored(args, asked_for.settings) if args.into else {}
    except EXPLAINED as error:
        print(plain(f"samclip batch: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        with suppress(*EXPLAINED):
            saved = f"{_saved(args.out):,} images are saved in {args.out}"
            print(
                plain(f"samclip batch: {saved}. To go on with the others: {_command(argv)}"),
                file=sys.stderr,
            )
        raise
    manifest = result.manifest
    if args.json:
        print(json.dumps({**manifest, **stored, "changed": result.changed}, indent=2))
    else:
        model, seconds = manifest["model"], round(time.monotonic() - start)
        row = {**manifest["counts"], **stored, "parts": manifest["parts"], "seconds": seconds}
        print(
            table([row | {"model": f"{model['name']} {shown(model['digest'])}", "out": args.out}])
        )
    return _explained(result, argv, args.out)


def _stored(args: argparse.Namespace, settings: Settings) -> dict[str, int]:
    """Add the images to the collection; return how many it has and has refused."""
    done = into.append(args.out, args.into, args.regions, settings)
    for id, reason in done.errors.items():
        print(plain(f"samclip batch: {id} is not in {args.into}: {reason}"), file=sys.stderr)
    return {"indexed": done.indexed, "refused": len(done.errors)}


def _saved(out: str) -> int:
    """Return how many images the tables have answers about, or reasons why there are none."""
    plan = Plan.load(Folder(out))
    return sum(stamp.images + stamp.failures for stamp in plan.stamps().values()) if plan else 0


def _command(argv: Sequence[str] | None) -> str:
    """Return the command that was given."""
    return shlex.join(["samclip", "batch", *(sys.argv[1:] if argv is None else argv)])


def _explained(result: job.Result, argv: Sequence[str] | None, out: str) -> int:
    """Say what the result lacks; return the exit code."""
    lacks = []
    if result.unread:
        lacks.append(
            f"{result.unread:,} images could not be read (unread in {out}/{FAILURES}). "
            f"To try them again: {_command(argv)}"
        )
    if result.changed:
        lacks.append(
            f"{result.changed}: the result has those of the first run. For those that were added "
            "since, give another --out"
        )
    for sentence in lacks:
        print(plain(f"samclip batch: {sentence}"), file=sys.stderr)
    return INCOMPLETE if lacks else 0


def _work(args: argparse.Namespace) -> dict[str, Any]:
    plain = "embed", "top_k", "text", "min_score", "everything", "background", "regions"
    lists = {name: usage.split(getattr(args, name)) for name in ("labels", "semantic")}
    later = {"heads": args.head, "exclusive": args.exclusive}  # without them it is as it always was
    new = {name: value for name, value in later.items() if value}
    return {name: getattr(args, name) for name in plain} | lists | new


def _job(args: argparse.Namespace, work: dict[str, Any]) -> job.Job:
    flags = {name: getattr(args, name) for name in ("checkpoint", "device", "dtype")}
    settings = Settings.load(args.config, **flags, heads=args.head or None)
    tiles = wire.tiles(args.tiles)
    check_tiles(tiles, settings.max_tiles)
    if is_tiled(tiles):
        work |= {"tiles": [tiles, settings.max_tiles if tiles == AUTO else tiles]}
    gpus = args.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if settings.device.startswith("cuda") else 0.0
    return job.Job(
        sources=args.source,
        out=args.out,
        work=work,
        settings=settings,
        columns=Columns(args.column, args.id_column),
        budget=job.Budget(workers=args.workers, cpus=args.cpus_per_worker, gpus=gpus),
        part_size=args.part_size,
        max_failures=args.max_failures,
        coco=args.format == "coco",
    )


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip batch",
        description="Answer questions about any number of images, each encoded once, and write the "
        "answers as Parquet tables. A run that was stopped goes on where it was: give the same "
        "command again. Exit code 3 says that images could not be read, or that the sources have "
        "changed.",
        examples=[
            "samclip batch photos/ --out lake --embed",
            "samclip batch s3://photos --out s3://lake --embed --labels cat dog",
            "samclip batch photos/ --out lake --embed --into pets",
            "ray job submit -- samclip batch s3://shards --out s3://lake --regions",
        ],
    )
    made.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="file, folder, quoted glob or fsspec URL of images, of WebDataset shards (.tar) or "
        "of tables (.parquet, .jsonl, .txt) with a path, address or file per row",
    )
    made.add_argument("--out", required=True, metavar="URL", help="folder or URL of the tables")
    _add_work(made)
    _add_tables(made)
    _add_budget(made)
    made.add_argument("--json", action="store_true", help="print the manifest as JSON")
    return made


def _add_work(made: Parser) -> None:
    group = made.add_argument_group("questions")
    add: Any = group.add_argument
    add("--embed", action="store_true", help="the vector that a search compares")
    usage.texts(group, "--labels", "rank these labels; a single value is split at commas")
    add("--top-k", type=usage.positive, metavar="K", help="keep the best K labels (all)")
    usage.texts(group, "--text", "the objects that each text describes, as masks")
    add("--min-score", type=float, metavar="X", help="least score of an object of --text")
    add("--exclusive", action="store_true", help="masks of several --text do not overlap")
    add(
        "--everything", action="store_true", help="all objects as masks, named by --labels if given"
    )
    usage.texts(group, "--semantic", "a map of these labels; a single value is split at commas")
    add("--background", action="store_true", help="pixels of --semantic may have no label")
    add("--regions", action="store_true", help="the masks of everything, each with its vector")
    usage.tiles(group)
    add(
        "--head",
        action="append",
        metavar="SPEC",
        help="a head of your own, as FILE.py:CLASS, MODULE:CLASS or FOLDER; repeat for several",
    )


def _add_tables(made: Parser) -> None:
    group = made.add_argument_group("tables")
    add: Any = group.add_argument
    add("--column", default="", metavar="NAME", help="a table's column of paths or bytes")
    add("--id-column", default="", metavar="NAME", help="a table's column of ids (id, or the path)")
    add(
        "--format",
        choices=("coco",),
        metavar="FORM",
        help="coco: also write the masks as a data set, coco.json",
    )
    add(
        "--max-failures",
        type=usage.count,
        metavar="N",
        help="stop when more than N images cannot be read (never)",
    )
    add(
        "--into",
        metavar="COLLECTION",
        help="also add the images of --embed, and their objects with --regions, to this collection "
        "in the setting index_dir; no service is needed",
    )
    add("--part-size", type=usage.positive, default=256, metavar="N", help="images per file (256)")


def _add_budget(made: Parser) -> None:
    group = made.add_argument_group("model and machines")
    add: Any = group.add_argument
    add("--checkpoint", help="name or directory (the setting checkpoint)")
    add("--device", help="the setting device")
    add("--dtype", help="the setting dtype; float32 where processors differ")
    add("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    add("--workers", type=usage.count, default=0, metavar="N", help="processes (all that are free)")
    each = min(2, cores())
    add(
        "--cpus-per-worker",
        type=usage.positive,
        default=each,
        metavar="N",
        help=f"cores of each ({each})",
    )
    add("--gpus-per-worker", type=float, metavar="X", help="GPUs of each (1 with --device cuda)")


if __name__ == "__main__":
    sys.exit(main())
