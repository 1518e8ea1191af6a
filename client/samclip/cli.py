"""The ``samclip`` command: requests to a running service, and the tools to build and run one.

Requests need only the client. The other commands need optional dependencies, so their modules are
imported when they are called.
"""

import argparse
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from samclip import __version__, commands
from samclip.client import Client
from samclip.commands import Row
from samclip.errors import ServiceError, Unavailable
from samclip.session import credentials


class Part(NamedTuple):
    """A command in another module, which defines ``main(argv) -> exit status``."""

    module: str
    extra: str  # the pip extra with its dependencies
    help: str


PARTS = {
    "serve": Part("services.launch.serve", "serve", "run the service until Ctrl-C"),
    "keys": Part("services.front_door.keys", "serve", "create, list and remove API keys"),
    "front-door": Part(
        "services.front_door.haproxy", "serve", "run the front door of a Ray cluster"
    ),
    "cache": Part("services.cache.command", "serve", "inspect, purge or warm the embedding cache"),
    "convert": Part(
        "samclip_core.commands.convert", "torch", "convert official weights to a checkpoint"
    ),
    "export": Part(
        "samclip_core.commands.export", "export", "export a checkpoint's graphs for CPUs"
    ),
    "push": Part(
        "samclip_core.commands.push", "hub", "publish a checkpoint on the Hugging Face hub"
    ),
    "pull": Part(
        "samclip_core.commands.pull", "hub", "fetch a checkpoint from the Hugging Face hub"
    ),
    "train": Part("training.train", "train", "train a checkpoint"),
    "reindex": Part(
        "services.retrieval.reindex", "serve", "rebuild a collection for another checkpoint"
    ),
    "eval": Part("training.evaluation.evaluate", "train", "evaluate a checkpoint"),
    "plan": Part("services.plan", "serve", "estimate machines, Redis and cost for a load"),
    "info": Part(
        "samclip_core.commands.info", "core", "show a checkpoint's config, lineage and digest"
    ),
    "demo": Part("samclip.demo", "dev", "run sample photographs through every head"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: success. 1: failure. 2: usage error. 130: interrupted. 141: the output was closed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE


def _discard_output() -> None:
    """Redirect output to /dev/null: Python would report the closed pipe again at exit."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in PARTS:
        return _run_part(arguments[0], arguments[1:])
    args = _parser().parse_args(arguments)
    try:
        with connect(args) as client:
            rows = args.command(client, args)
            model = client.model
    except (ServiceError, OSError, ValueError) as error:
        print(f"samclip: {error}", file=sys.stderr)
        if isinstance(error, Unavailable):
            print(
                f"Is a service running at {args.server}? Start one: samclip serve", file=sys.stderr
            )
        return 1
    if args.json:
        answer = {"model": asdict(model) if model else None, "results": rows}
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        print(table(rows))
    return 1 if any(row.get("error") for row in rows) else 0


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table with their keys as header, numbers aligned right, long lists cut."""
    if not rows:
        return "nothing found"
    header = list(dict.fromkeys(key for row in rows for key in row))
    lines = [header] + [[_cell(row.get(key, "")) for key in header] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numeric = [any(isinstance(row.get(key), int | float) for row in rows) for key in header]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    match value:
        case float():
            return f"{value:.3f}"
        case list() if len(value) > 4:
            return f"[{', '.join(map(_cell, value[:3]))}, … {len(value)}]"
        case list():
            return f"[{', '.join(map(_cell, value))}]"
        case dict():
            return " ".join(f"{key}={item}" for key, item in value.items())
        case _:
            return str(value)


def _run_part(command: str, argv: list[str]) -> int:
    part = PARTS[command]
    try:
        module = importlib.import_module(part.module)
    except ModuleNotFoundError as error:
        print(
            f"samclip {command} needs {error.name}, which is not installed: "
            f"pip install 'samclip[{part.extra}]'",
            file=sys.stderr,
        )
        return 1
    return int(module.main(argv))


def connect(args: argparse.Namespace, bulk: bool = False) -> Client:
    """Return a client for the options of ``add_service``. Raises OSError if a file is missing."""
    tls = credentials(args.ca, args.cert) if args.ca or args.cert else args.tls
    return Client(args.server, api_key=args.api_key, tls=tls, timeout=args.timeout, bulk=bulk)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="samclip",
        description="Classify, segment and search photographs: one encoder, many heads.",
    )
    parser.add_argument("--version", action="version", version=f"samclip {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND [-h]", required=True)
    _add_photo_commands(subparsers)
    _add_collection_commands(subparsers)
    for name, part in PARTS.items():  # only for --help: _run handles these commands
        subparsers.add_parser(name, help=part.help, add_help=False)
    return parser


def _add(subparsers: Any, name: str, help: str, description: str = "") -> argparse.ArgumentParser:
    """Add the parser of a request, with the options that all requests share."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=help, description=description or f"{help[0].upper()}{help[1:]}."
    )
    parser.set_defaults(command=getattr(commands, name))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_service(parser)
    return parser


def add_service(parser: argparse.ArgumentParser) -> None:
    """Add the options for the service's address and for authentication."""
    service = parser.add_argument_group("service")
    service.add_argument("--server", default="127.0.0.1:9000", metavar="HOST:PORT")
    service.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    service.add_argument(
        "--api-key", default=os.environ.get("SAMCLIP_API_KEY"), help="default: $SAMCLIP_API_KEY"
    )
    service.add_argument("--tls", action="store_true", help="use TLS with the system's CAs")
    service.add_argument("--ca", type=Path, metavar="FILE", help="use TLS with this CA (PEM)")
    service.add_argument(
        "--cert",
        type=Path,
        metavar="FILE",
        help="use TLS with this client certificate and key (PEM)",
    )


def _add_photo_commands(subparsers: Any) -> None:
    _add_classify(subparsers)
    _add_segment(subparsers)
    _add_maps(subparsers)
    _add_everything(subparsers)
    embed = _add(subparsers, "embed", "print the embeddings of photographs and texts")
    embed.add_argument("images", nargs="*", metavar="IMAGE")
    _labels(embed, "--text", help="texts to embed")


def _add_classify(subparsers: Any) -> None:
    classify = _add(subparsers, "classify", "rank labels for each photograph")
    classify.add_argument("images", nargs="+", metavar="IMAGE")
    _labels(classify, "--labels", required=True)
    _labels(classify, "--templates", help="prompt templates, with {} for the label")
    classify.add_argument("--top-k", type=int, default=0, metavar="K", help="0: all labels")
    classify.add_argument(
        "--box",
        type=float,
        nargs=4,
        action="append",
        default=[],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="classify this part instead; repeat for several parts",
    )


def _add_segment(subparsers: Any) -> None:
    segment = _add(subparsers, "segment", "segment objects by points, boxes or texts")
    segment.add_argument("image", metavar="IMAGE")
    for name, numbers, help in (
        ("--point", 2, "a pixel inside the object"),
        ("--negative", 2, "a pixel outside the object"),
        ("--box", 4, "a box around the object; repeat for several, but once with --text"),
    ):
        metavar = ("X", "Y") if numbers == 2 else ("X0", "Y0", "X1", "Y1")
        segment.add_argument(
            name, type=float, nargs=numbers, action="append", default=[], metavar=metavar, help=help
        )
    for name, dest, help in (
        (
            "--text",
            "text",
            "segment what this describes, if it is there; repeat to let them compete",
        ),
        ("--not", "not_texts", "leave out what this describes better than --text"),
    ):
        segment.add_argument(
            name, dest=dest, action="append", default=[], metavar="PHRASE", help=help
        )
    segment.add_argument(
        "--min-score",
        type=float,
        metavar="X",
        help="for --text: least label_score, 0 to 1; default: 0.6",
    )
    segment.add_argument("--multimask", action="store_true", help="three masks per object")
    _out(segment)


def _add_maps(subparsers: Any) -> None:
    semantic = _add(subparsers, "semantic", "assign one of the labels to each pixel")
    semantic.add_argument("image", metavar="IMAGE")
    _labels(semantic, "--labels", required=True)
    semantic.add_argument("--refine", action="store_true", help="refine regions with the SAM head")
    semantic.add_argument(
        "--background", action="store_true", help="leave ambiguous pixels unlabelled"
    )
    _out(semantic)

    explain = _add(subparsers, "explain", "show where the model sees a label, as a heat map")
    explain.add_argument("image", metavar="IMAGE")
    explain.add_argument("--label", required=True, metavar="TEXT")
    _labels(explain, "--others", help="show the label's probability against these instead")
    explain.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write overlay.png, and heat.png of the levels"
    )


def _add_everything(subparsers: Any) -> None:
    everything = _add(subparsers, "everything", "segment every object")
    everything.add_argument("image", metavar="IMAGE")
    _labels(everything, "--labels", help="label each object with one of these")
    everything.add_argument(
        "--vocabulary",
        choices=["coco", "lvis"],
        default="",
        help="label each object with a name of this data set instead",
    )
    everything.add_argument(
        "--min-label-score",
        type=float,
        metavar="X",
        help="leave out labels that are less probable than this, 0 to 1; default: 0.3",
    )
    everything.add_argument(
        "--points-per-side", type=int, default=0, metavar="N", help="size of the finest grid"
    )
    everything.add_argument(
        "--crop-layers",
        type=int,
        default=0,
        metavar="N",
        help="also search crops, for small objects: 4 with 1, 16 more with 2",
    )
    everything.add_argument(
        "--panoptic",
        action="store_true",
        help="one picture in COCO's panoptic format, with --out as PNG and JSON",
    )
    _out(everything)


def _add_collection_commands(subparsers: Any) -> None:
    index = _add(subparsers, "index", "add photographs to a collection")
    index.add_argument("collection", metavar="COLLECTION")
    index.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders")
    _pairs(index, "--metadata", "metadata of each photograph; repeatable")

    search = _add(subparsers, "search", "find photographs similar to a text or an image")
    search.add_argument("collection", metavar="COLLECTION")
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("--text")
    query.add_argument("--image")
    query.add_argument("--id", help="photographs similar to this one of the collection")
    search.add_argument(
        "--box",
        type=float,
        nargs=4,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="with --image: search by this part of it",
    )
    search.add_argument(
        "--with-text",
        default="",
        metavar="TEXT",
        help="with --image or --id: prefer what this text describes as well",
    )
    search.add_argument("--top-k", type=int, default=0, metavar="K", help="0: 10")
    search.add_argument("--offset", type=int, default=0, metavar="N", help="skip the first N hits")
    _pairs(search, "--where", "only photographs with this metadata; repeat to require several")

    delete = _add(subparsers, "delete", "delete photographs or a whole collection")
    delete.add_argument("collection", metavar="COLLECTION")
    delete.add_argument("ids", nargs="*", metavar="ID")
    delete.add_argument(
        "--all", action="store_true", help="delete the whole collection; takes no IDs"
    )
    delete.add_argument("--yes", action="store_true", help="with --all: skip the confirmation")

    describe = _add(subparsers, "describe", "list collections")
    describe.add_argument("collection", nargs="?", default="", metavar="COLLECTION")


def _labels(
    parser: argparse.ArgumentParser, name: str, required: bool = False, help: str | None = None
) -> None:
    parser.add_argument(
        name,
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        required=required,
        help=help,
    )


def _pairs(parser: argparse.ArgumentParser, name: str, help: str) -> None:
    form = "KEY=VALUE"
    parser.add_argument(name, type=_pair, action="append", default=[], metavar=form, help=help)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write overlay.png, and mask-NNN.png per mask"
    )


if __name__ == "__main__":
    sys.exit(main())
