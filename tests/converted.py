"""Checkpoints as ``samclip convert`` makes them of published layouts, with random weights."""

from dataclasses import replace
from pathlib import Path

from samclip_core.commands.convert import convert
from samclip_core.commands.convert_radio import convert_radio
from samclip_core.config import UNCALIBRATED, Presence
from samclip_core.io import checkpoint
from tests.clip_models import write_clip

SIDES = 128, 256
"""Of the frame for words and maps, and for masks; the published models take a second for 1024."""


def make_converted(name: str, data: Path, out: Path) -> Path:
    """Convert ``radio``, ``radio beside mobile``, or ``mobile`` with a small CLIP; return ``out``.

    ``data`` is the folder with radio-tiny and mobile-sam-random. Searches for everything and for
    texts keep the masks of these random weights.
    """
    files, mobile_sam = data / "radio-tiny", data / "mobile-sam-random/mobile_sam.pth"
    if name == "mobile":
        tower = f"local-dir:{write_clip(out.with_name('clip'))}"
        convert(mobile_sam, tower, out, name, sides=SIDES)
    else:
        sam = files / "sam.pth" if name == "radio" else mobile_sam
        convert_radio(files, sam, f"local-dir:{files}/text-siglip2-g", out, name, sides=SIDES)
    config = checkpoint.read_config(out)
    config = replace(config, min_predicted_iou=0.0, min_stability=0.0, points_per_side=4)
    presence = Presence(map_weight=1.0, pooled_weight=0.0, offset=0.0, min_score=0.0)
    config = replace(config, calibration=replace(UNCALIBRATED, presence=presence))
    (out / checkpoint.CONFIG).write_text(config.to_json())
    checkpoint.seal(out)
    return out
