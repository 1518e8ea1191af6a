"""Checkpoints as ``samclip convert`` makes them of published layouts, with random weights."""

from dataclasses import replace
from pathlib import Path

from samclip_core.commands.convert import convert
from samclip_core.commands.convert_radio import convert_radio
from samclip_core.io import checkpoint
from tests.clip_models import write_clip

SIDES = 128, 256
"""Of the frame for words and maps, and for masks; the published models take a second for 1024."""


def make_converted(name: str, data: Path, out: Path) -> Path:
    """Convert ``radio``, or ``mobile``, a pair of MobileSAM and a small CLIP; return ``out``.

    ``data`` is the folder with radio-tiny and mobile-sam-random. A search for everything keeps the
    masks of these random weights.
    """
    if name == "radio":
        files = data / "radio-tiny"
        tower = f"local-dir:{files}/text-siglip2-g"
        convert_radio(files, files / "sam.pth", tower, out, name, sides=SIDES)
    else:
        tower = f"local-dir:{write_clip(out.with_name('clip'))}"
        convert(data / "mobile-sam-random/mobile_sam.pth", tower, out, name, sides=SIDES)
    config = checkpoint.read_config(out)
    config = replace(config, min_predicted_iou=0.0, min_stability=0.0, points_per_side=4)
    (out / checkpoint.CONFIG).write_text(config.to_json())
    checkpoint.seal(out)
    return out
