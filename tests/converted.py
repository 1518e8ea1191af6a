"""Checkpoints as ``samclip convert`` makes them of published layouts, with random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from samclip_core.calibration import UNCALIBRATED, Presence
from samclip_core.commands.convert import convert
from samclip_core.commands.convert_radio import convert_radio
from samclip_core.config import VIT_B
from samclip_core.families import sam2
from samclip_core.families.sam2 import Sam2Config
from samclip_core.io import checkpoint
from samclip_core.io.official import renamed
from samclip_core.nn.network import SAM_PARTS, build
from tests.clip_models import write_clip
from tests.weights import seeded

NARROW = Sam2Config(
    width=8, depths=(1, 1, 1, 1), heads=1, windows=(8, 4, 14, 7), global_blocks=(2,)
)
sam2.SIZES[NARROW.width, NARROW.depths] = NARROW  # as if it had been published
_TO_PUBLISHER = (
    (r"^image_encoder\.no_memory$", "no_mem_embed"),
    (r"^image_encoder\.conv_s", "sam_mask_decoder.conv_s"),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
    (r"^image_encoder\.blocks\.", "image_encoder.trunk.blocks."),
    (r"^image_encoder\.patches\.", "image_encoder.trunk.patch_embed.proj."),
    *((rf"\.lateral\.{n}\.", f".neck.convs.{3 - n}.conv.") for n in range(4)),
    (r"\.mlp\.lin1\.", ".mlp.layers.0."),
    (r"\.mlp\.lin2\.", ".mlp.layers.1."),
)
SIDES = 128, 256
"""Of the frame for words and maps, and for masks; the published models take a second for 1024."""


def make_converted(name: str, data: Path, out: Path) -> Path:
    """Convert a ``radio``, with ``beside mobile``, or a pair with a small CLIP; return ``out``.

    Pairs are ``mobile``, ``efficientvit`` and ``sam2``. ``data`` is the folder with the random
    weights, whose masks are all kept by searches for everything and for texts.
    """
    files, mobile_sam = data / "radio-tiny", data / "mobile-sam-random/mobile_sam.pth"
    if name == "mobile":
        make_pair(mobile_sam, out, name=name, sides=SIDES)
    elif name == "efficientvit":
        make_pair(efficientvit_sam("l0", data, out.parent), out, name=name)
    elif name == "sam2":
        make_pair(narrow_sam2(out.parent), out, name=name)
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


def narrow_sam2(folder: Path) -> Path:
    """Write a ``NARROW`` SAM 2.1 as its publisher does; return the file."""
    config = replace(VIT_B, kind="pair", backbone=sam2.BACKBONE, networks={"sam2": NARROW})
    net = seeded(lambda: build(config, SAM_PARTS), 0)
    state = {key: value for key, value in net.state_dict().items() if "positions" not in key}
    state = renamed(state, _TO_PUBLISHER)
    for name, side in (("", 7), ("_window", 8)):
        state[f"image_encoder.trunk.pos_embed{name}"] = torch.zeros(1, NARROW.width, side, side)
    file = folder / "sam2.1_hiera_narrow.pt"
    torch.save({"model": state}, file)
    return file


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
