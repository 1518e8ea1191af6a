"""``samclip info``: describe a checkpoint and its lineage, without reading its weights."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core import licence
from samclip_core.config import SamClipConfig
from samclip_core.errors import CheckpointError, plain
from samclip_core.io import checkpoint, manifest

LONGEST_WORD = 256
"""Characters of a path or digest, or fewer; an encoded vector has more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a checkpoint's digest, files, config, lineage and graphs; return the exit code."""
    args = parser().parse_args(argv)
    try:
        found = describe(checkpoint.resolve(args.checkpoint))
    except CheckpointError as error:
        print(f"samclip info: {error}", file=sys.stderr)
        return 1
    text = json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(lines(found))
    print(plain(text, keep="\n"))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip info",
        description="""Show a checkpoint's digest, files, config, lineage and graphs.""",
        epilog="""examples:
  samclip info
  samclip info runs/vit-b --json""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.add_argument("checkpoint", nargs="?", default="edge", help="bundled name or directory")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def describe(directory: Path) -> dict[str, Any]:
    """Return a checkpoint's description. Raises CheckpointError if the checkpoint is damaged."""
    config = checkpoint.read_config(directory)
    lineage = checkpoint.read_lineage(directory)
    found = {
        "directory": str(directory),
        "digest": checkpoint.digest(directory),
        "licence": licence.of(config.kind, lineage),
        "masks": _masks(config),
        "scores": _scores(config),
        "bytes": {path.name: path.stat().st_size for path in sorted(directory.iterdir())},
        "config": json.loads(config.to_json()),
        "lineage": lineage,
    }
    if graphs := manifest.read_graphs(directory):
        found["graphs"] = graphs
    return found


def _masks(config: SamClipConfig) -> str:
    if not config.masks:
        return "none: it classifies, makes maps and heat maps, embeds and searches"
    return f"from frames of {config.image_size} pixels"


def _scores(config: SamClipConfig) -> str:
    if config.uncalibrated:
        if not config.masks:
            return "uncalibrated: they only rank; a checkpoint without masks cannot be calibrated"
        return (
            "uncalibrated: they rank, and are no probabilities until `samclip calibrate` fits them"
        )
    return (
        "calibrated: the score of a text is the probability that its object is there, where "
        "present and absent objects are equally common"
    )


def lines(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Format nested values as indented lines of ``name: value``, without encoded vectors."""
    found = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            found += [plain(f"{indent}{name}:"), *lines(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            found.append(plain(f"{indent}{name}:"))
            for one in item:
                first, *others = lines(one, indent + "    ")
                found += [f"{indent}  - {first.lstrip()}", *others]
        elif isinstance(item, list):
            found.append(plain(f"{indent}{name}: {', '.join(map(str, item))}"))
        else:
            encoded = isinstance(item, str) and len(item) > LONGEST_WORD and " " not in item
            shown = f"{len(item):,} characters, see --json" if encoded else item
            found.append(plain(f"{indent}{name}: {shown}"))
    return found
