"""Checkpoints as ``samclip convert`` makes them of published layouts, with random weights."""

from dataclasses import replace
from pathlib import Path

import torch

from samclip_core.calibration import UNCALIBRATED, Presence
from samclip_core.commands.convert import convert
from samclip_core.commands.convert_radio import convert_radio
from samclip_core.io import checkpoint
from tests.clip_models import write_clip

SIDES = 128, 256
"""Of the frame for words and maps, and for masks; the published models take a second for 1024."""


def make_converted(name: str, data: Path, out: Path) -> Path:
    """Convert a ``radio``, with ``beside mobile``, or a pair with a small CLIP; return ``out``.

    Pairs are ``mobile`` and ``efficientvit``. ``data`` is the folder with the random weights, whose
    masks are all kept by searches for everything and for texts.
    """
    files, mobile_sam = data / "radio-tiny", data / "mobile-sam-random/mobile_sam.pth"
    if name in ("mobile", "efficientvit"):
        tower = f"local-dir:{write_clip(out.with_name('clip'))}"
        if name == "mobile":
            convert(mobile_sam, tower, out, name, sides=SIDES)
        else:
            convert(efficientvit_sam("l0", data, out.parent), tower, out, name)
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


def efficientvit_sam(variant: str, data: Path, folder: Path) -> Path:
    """Write a narrow EfficientViT-SAM, ``l0`` or ``xl0``, as its publisher does; return the file.

    The folder with its encoder's random weights says that its decoder is MobileSAM's.
    """
    state = torch.load(data / f"efficientvit-sam-tiny/{variant}-tiny.pt", weights_only=True)
    mobile_sam = torch.load(data / "mobile-sam-random/mobile_sam.pth", weights_only=True)
    state |= {k: value for k, value in mobile_sam.items() if not k.startswith("image_encoder.")}
    file = folder / f"efficientvit_sam_{variant}.pt"
    torch.save(state, file)
    return file
