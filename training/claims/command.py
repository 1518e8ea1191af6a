"""The options and the output of every claim's command."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.evaluation.suite import Options, add_part
from training.inputs import photograph_sets


def claim_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all claims."""
    parser = argparse.ArgumentParser(prog=f"training.claims.{name}", description=about)
    parser.add_argument("--root", help="folder of the photograph sets (SAMCLIP_DATA)")
    parser.add_argument("--limit", type=int, help="photographs per set, spread evenly over it")
    parser.add_argument("--out", type=Path, default=Path("out/claims"))
    return parser


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options of a claim about one checkpoint."""
    parser.add_argument("--checkpoint", default="edge", help="name or directory")
    add_part(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add the options of a claim about one semantic set."""
    parser.add_argument("--set", default="coco_multi", help="coco_multi, labelmefacade or camvid")
    parser.add_argument("--split", default="val", help="val or train")


def options_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Options:
    """Return the photographs that the command asks for; exit if it names no folder."""
    root = Path(photograph_sets(parser, "--root", args.root))
    return Options(root=root, limit=args.limit, part=getattr(args, "part", "all"))


def write(
    out: Path, name: str, found: Mapping[str, Any], text: str, figure: Figure | None = None
) -> None:
    """Write ``name.json``, ``name.md`` and, given a figure, ``name.png``; print the text."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (out / f"{name}.md").write_text(text)
    if figure is not None:
        figure.savefig(out / f"{name}.png", dpi=110)
    print(text, end="")
