"""Checkpoints as ``samclip convert`` makes them of published layouts, with random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

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
    if name == "mobile":
        make_pair(mobile_sam, out, name=name, sides=SIDES)
    elif name == "efficientvit":
        make_pair(efficientvit_sam("l0", data, out.parent), out, name=name)
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


def make_pair(sam: Path, out: Path, **options: Any) -> Path:
    """Convert a SAM and a small CLIP, which is written beside ``out``; return ``out``."""
    clip = out.with_name("clip")
    convert(sam, f"local-dir:{clip if clip.exists() else write_clip(clip)}", out, **options)
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
