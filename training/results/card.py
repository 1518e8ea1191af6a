"""The model card of a checkpoint: what it is, where it comes from, what was measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samclip_core.io import checkpoint

CARD = """# {name}

A SAM-CLIP checkpoint of kind `{kind}`: one image encoder ({backbone}, {size} px) whose features
answer what a photograph shows and where it is.

## Figures

Measured by `samclip eval` on the validation parts of the photograph sets, which training never saw.

| figure | value |
|---|---|
{figures}

## Teachers

{teachers}

## Data

Photographs of {sets}. They are for research use; so is a model trained on them. Outlines taught
only the SAM teacher{named}; captions and the classes of whole photographs taught nothing.

## Limits

It knows the things of ImageNet's 1,000 classes and what lies between them, not brands, people,
text or numbers; it counts badly. Masks have {cells}×{cells} cells over the longer side: thin and
small things are lost. Photographs only: drawings, scans and medical pictures were never shown.

## Licence

The weights are released under Apache-2.0, as their sources are: EfficientNet-Lite (Apache-2.0) and
all-MiniLM-L6-v2 (Apache-2.0). The photographs' own licences restrict them to research; whoever
uses the weights otherwise has to judge what that means for them.
"""


def complete(directory: Path, metrics: Mapping[str, float]) -> str:
    """Write measured figures into a checkpoint's lineage and card; give the new digest."""
    config = checkpoint.read_config(directory)
    lineage: dict[str, Any] = json.loads(checkpoint.read_file(directory, checkpoint.LINEAGE))
    lineage["metrics"] = dict(metrics)
    (directory / checkpoint.LINEAGE).write_text(
        json.dumps(lineage, indent=2, sort_keys=True) + "\n"
    )
    named = lineage["teachers"].get("names")
    card = CARD.format(
        name=config.name,
        kind=config.kind,
        backbone=config.backbone,
        size=config.image_size,
        cells=4 * config.grid,
        figures=table(metrics),
        teachers="\n".join(f"- **{key}**: {what}" for key, what in lineage["teachers"].items()),
        sets=", ".join(sorted(lineage["data"])),
        named=f", and the classes of {named}'s label maps Head_CLIP's patches" if named else "",
    )
    (directory / checkpoint.CARD).write_text(card)
    return checkpoint.seal(directory)


def table(metrics: Mapping[str, float]) -> str:
    """The rows of a Markdown table: one figure each, in per cent."""
    return "\n".join(
        f"| {name.replace('_', ' ')} | {value:.1%} |" for name, value in metrics.items()
    )
