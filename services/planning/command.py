"""``samclip plan``: print the size of a deployment for a load, or of a batch."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from samclip.cli.usage import Parser

from services.planning.batches import QUESTIONS, models, plan_batch
from services.planning.sizes import Choices, Costs, Load, PlanError, machines, plan


def main(argv: Sequence[str] | None = None) -> int:
    """Print a plan; return the exit code."""
    args = parser().parse_args(argv)
    given = {name: value for name, value in vars(args).items() if value is not None}
    if args.images is not None:
        return _batch(args, Choices(**_fields(Choices, given)))
    try:
        load, choices = Load(**_fields(Load, given)), Choices(**_fields(Choices, given))
        costs = Costs.read(args.bench) if args.bench else Costs.reference(args.machine)
        found = plan(load, costs, choices, args.device == "cuda")
    except PlanError as error:
        print(f"samclip plan: {error}", file=sys.stderr)
        return 1
    values, assumed = asdict(found), asdict(load) | asdict(choices)
    if args.json:
        print(json.dumps(values | {"assumed": assumed}, indent=2))
        return 0
    print(f"each machine: {args.bench or machines()[args.machine]['about']}")
    _show(assumed, values)
    return 0


def _batch(args: argparse.Namespace, choices: Choices) -> int:
    """Print the plan of a batch."""
    model, cores = models()[args.model], machines()[args.machine]["cores"] * args.machines
    image_bytes = args.image_bytes or Load(images_per_s=1).image_bytes
    asked = tuple(args.questions)
    try:
        found = plan_batch(
            args.images, model, asked, cores=cores, image_bytes=image_bytes, choices=choices
        )
    except PlanError as error:
        print(f"samclip plan: {error}", file=sys.stderr)
        return 1
    prices = {"core_hour": choices.core_hour, "gb_hour": choices.gb_hour}
    assumed = {"images": args.images, "machines": args.machines, "image_bytes": image_bytes}
    if args.json:
        assumed |= {**prices, "model": args.model, "questions": asked, "about": model["about"]}
        print(json.dumps(asdict(found) | {"assumed": assumed}, indent=2))
        return 0
    print(f"{args.model}: {model['about']}")
    _show(assumed | prices, asdict(found))
    return 0


def _show(assumed: Mapping[str, float | None], needed: Mapping[str, float | None]) -> None:
    for title, rows in (("assumed", assumed), ("needed", needed)):
        print(f"\n{title}:")
        for name, value in rows.items():
            if value is not None:
                print(f"  {name.replace('_', ' '):22}{value:12,.6g}")


def _fields(kind: type[Load] | type[Choices], given: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: given[field.name] for field in fields(kind) if field.name in given}


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip plan",
        description="Size machines, GPUs and Redis for a load, from the figures of a reference\n"
        "machine or the results of make bench. Classifications and clicks are counted; text\n"
        'prompts, "everything" and collections are not. Redis holds the images of a while and\n'
        "evicts those used least recently. With --images, size a samclip batch instead. The\n"
        "default prices are examples in USD.",
        examples=[
            "samclip plan --images-per-second 200 --hit-ratio 0.8",
            "samclip plan --images-per-second 20 --bench out/bench/bench.json --json",
            "samclip plan --images 1e7 --model edge --machine 16-cores --machines 4",
        ],
    )
    about = "; ".join(f"{name}: {values['about']}" for name, values in machines().items())
    add = made.add_argument
    number: dict[str, Any] = {"type": float, "metavar": "N"}
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--images-per-second", dest="images_per_s", help="of all callers", **number)
    what.add_argument("--images", help="of a batch", **number)
    add("--model", choices=[*models()], default="edge", help="model of a batch (edge)")
    add(
        "--questions",
        nargs="+",
        choices=QUESTIONS,
        default=["embed"],
        metavar="NAME",
        help=f"of a batch: {', '.join(QUESTIONS)} (embed); labels and texts take little more",
    )
    add("--machines", type=int, default=1, metavar="N", help="machines for a batch (1)")
    add("--clicks-per-second", dest="clicks_per_s", help="clicks on cached images (0)", **number)
    add("--hit-ratio", help="fraction of images in the cache (0)", **number)
    add("--machine", choices=[*machines()], default="2-cores", help=f"{about} (2-cores)")
    add("--bench", type=Path, metavar="FILE", help="bench.json of your machine instead")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="device of the encoder (cpu)")
    add("--image-bytes", help="size of an image file (250000)", **number)
    add("--redis-gb", help="memory of Redis, maxmemory of all shards (25)", **number)
    add("--keep-hours", help="have Redis hold images this long, instead of --redis-gb", **number)
    add("--utilisation", help="max utilisation of cores, GPUs, Redis (0.7)", **number)
    add("--shard-gb", help="memory of one Redis shard (25)", **number)
    add("--core-hour", help="hourly price of a core (0.04)", **number)
    add("--gb-hour", help="hourly price of a GB of memory (0.005)", **number)
    add("--gpu-hour", help="hourly price of a GPU (2.5)", **number)
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


if __name__ == "__main__":
    sys.exit(main())
