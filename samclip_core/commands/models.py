"""``samclip models``: the published models that ``samclip pull`` makes checkpoints of."""

import json
import sys
from dataclasses import asdict

from samclip_core.commands import measured
from samclip_core.errors import CheckpointError, plain
from samclip_core.families import FAMILIES
from samclip_core.families.published import Published
from samclip_core.io import checkpoint

_ROWS = [row for family in FAMILIES for row in family.models]
MODELS = {row.name: row for row in sorted(_ROWS, key=lambda row: "GPU" in row.use)}
"""By their names, those for CPUs first."""


def show(as_json: bool = False) -> None:
    """Print the published models: their use, size, cost, published figures and licences."""
    if as_json:
        found = [
            asdict(one)
            | {"gigabytes": one.gigabytes, "here": bool(checkpoint.found(name))}
            | {"measured": _measured(name), "revision not pinned": one.not_pinned}
            for name, one in MODELS.items()
        ]
        json.dump(found, sys.stdout, indent=2)
        print()
        return
    for one in MODELS.values():
        print("\n".join(_lines(one)), end="\n\n")
    print("samclip serve --checkpoint NAME makes a checkpoint if none is here, and serves it.")


def _measured(name: str) -> str:
    """Return what a checkpoint costs here; empty if there is none, or nobody has measured it."""
    directory = checkpoint.found(name)
    try:
        return plain(measured.known(directory)) if directory else ""
    except CheckpointError:  # it is damaged
        return ""


def _lines(one: Published) -> list[str]:
    cost = _measured(one.name)
    return [
        f"{one.name}{' (here)' if checkpoint.found(one.name) else ''}: {one.use}",
        f"  {one.millions} M parameters, {one.gflop:,} GFLOP per new image, "
        f"about {one.gigabytes} GB to download",
        *([f"  {cost}"] if cost else []),
        f"  words: {one.words}",
        f"  masks: {one.masks}",
        f"  maps: {one.maps}",
        *(f"  {licence}" for licence in one.licences),
    ]
