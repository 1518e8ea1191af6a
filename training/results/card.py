"""Write the model card of a checkpoint: description, origin and measured figures."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from samclip_core.commands.card import described
from samclip_core.config import SamClipConfig
from samclip_core.families import edge
from samclip_core.io import checkpoint
from training.results.tables import figure_table

CARD = """# {name}

A SAM-CLIP checkpoint of kind `{kind}`: one image encoder ({backbone}, {size} px) whose features
serve both recognition and segmentation.

## Figures

Measured by `samclip eval` on {part}. Their
photographs were not used in this training. {seen}
`miou` is over the classes that occur, with a 95 % bootstrap interval over photographs (`low`,
`high`); `miou union` is over those that occur or are predicted. Semantic figures are of maps as
they are served; `paper` are by the paper's protocol, squashed photographs without SAM's attention.

{figures}
## Teachers

{teachers}

## Data

Photographs of {sets}. {use}{named}; captions and the classes of whole photographs were not used.

## Limits

{knows} Masks have {cells}×{cells} cells over the longer side, so thin and
small objects are lost. It was trained on photographs only, without drawings, scans or medical
images.

## Licence

{licence}
"""


EDGE = {
    "seen": """`imagenet1k_sample` and `imagen200` are not zero-shot
for a trunk that is an ImageNet classifier: the first is probably part of its training set, the
second consists of ImageNet's own categories.""",
    "use": "Outlines were used only for the SAM teacher",
    "knows": """The model knows ImageNet's 1,000 classes and related concepts, but no brands,
people, text or numbers, and it counts badly.""",
}
OTHER = {
    "seen": """No labels of these sets
were used either, but the teachers' own training data may contain their photographs.""",
    "use": "Many of their licences allow research only. Outlines were used only to place prompts",
    "knows": "The model knows what its CLIP teacher knows, and nothing that this teacher does not.",
}
OTHER_LICENCE = """Those of the teachers' weights, which this model was made from: SAM's are under
Apache-2.0, a CLIP's under the licence that was published with them. Whether the photographs' terms
also bind a model that was trained on them is not settled."""


UNMEASURED = """# {name}

A SAM-CLIP checkpoint of kind `{kind}`: one image encoder ({backbone}, {size} px) whose features
serve both recognition and segmentation, made by `samclip train`. `samclip eval --card` adds
measured figures.

## Teachers

{teachers}

## Licence

{licence}
"""

PARTS = {
    "all": "the validation sets",
    "select": "the third of the validation sets that is for choosing",
    "report": "the two thirds of the validation sets that are for reporting",
}


def unmeasured(config: SamClipConfig, lineage: Mapping[str, Any]) -> str:
    """Return the card of a new checkpoint: its teachers and their licences."""
    return described(UNMEASURED.format(**_known(config, lineage)), config, lineage)


def _known(config: SamClipConfig, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both cards say. They name the teachers' strictest licence, if it is known."""
    terms, strictest = edge.LICENCE, lineage.get("licence")
    if config.kind != "edge":
        terms = OTHER_LICENCE
        terms += f"\nThe strictest licence of a part is: {strictest}." if strictest else ""
    teachers = [f"- **{key}**: {origin}" for key, origin in lineage["teachers"].items()]
    return {
        "name": config.name,
        "kind": config.kind,
        "backbone": config.backbone,
        "size": config.image_size,
        "teachers": "\n".join(teachers),
        "licence": terms,
    }


def complete(directory: Path, metrics: Mapping[str, float], part: str) -> str:
    """Write the figures of ``part`` into a checkpoint's lineage and card; return the new digest."""
    return checkpoint.rewrite(directory, partial(_completed, directory, metrics, part))


def _completed(directory: Path, metrics: Mapping[str, float], part: str) -> dict[str, str]:
    config = checkpoint.read_config(directory)
    lineage: dict[str, Any] = checkpoint.read_lineage(directory)
    lineage |= {"metrics": dict(metrics), "part": part}
    named = lineage["teachers"].get("names")
    text = CARD.format(
        **(EDGE if config.kind == "edge" else OTHER),
        **_known(config, lineage),
        cells=4 * config.grid,
        part=PARTS[part],
        figures=figure_table(metrics),
        sets=", ".join(sorted(lineage["data"])),
        named=f", and the label maps of {named} for Head_CLIP's patches" if named else "",
    )
    return {
        checkpoint.LINEAGE: checkpoint.lineage_text(lineage),
        checkpoint.CARD: described(text, config, lineage),
    }
