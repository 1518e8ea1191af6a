"""``samclip convert``: make a ``pair`` checkpoint from official SAM and open_clip weights."""

import argparse
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samclip_core.config import VIT_B, SamClipConfig, TextConfig
from samclip_core.errors import CheckpointError, SamClipError
from samclip_core.io import checkpoint
from samclip_core.nn.network import SAM_PARTS, build
from samclip_core.nn.text_encoder import OpenClipTextEncoder
from samclip_core.nn.vit import PATCH, VARIANTS

CARD = """# {name}

A SAM-CLIP checkpoint of kind `pair`: SAM's {backbone} and CLIP's {model} side by side, made by
`samclip convert`. Nothing was trained: each gives the results of the original. The weights keep
their original licences.

- SAM: `{sam}`
- CLIP: `{clip}`
"""


def convert(sam: Path, clip_model: str, clip: Path, out: Path, name: str = "pair") -> str:
    """Write a ``pair`` checkpoint of two official files to ``out``; return its digest.

    ``sam`` is a SAM .pth, ``clip`` the weights of the open_clip architecture ``clip_model``; both
    may be safetensors instead. Raises CheckpointError if a file cannot be read, or if its keys or
    shapes do not match the architecture.
    """
    sam_state, clip_state = read_state(sam), read_state(clip)
    config = pair_config(sam_state, clip_model, clip_state, name)
    net = build(config).eval()
    text_encoder = OpenClipTextEncoder(config.text).eval()

    sam_parts = nn.ModuleDict({part: net.get_submodule(part) for part in SAM_PARTS})
    fill(sam_parts, sam_state, sam, f"SAM's {config.backbone}")
    clip_net = text_encoder.model  # its image tower is part of the net: attach it only to load it
    clip_net.visual = net.clip_head.visual
    fill(clip_net, clip_state, clip, f"open_clip's {clip_model}")
    clip_net.visual = None

    sources = {
        "sam": {"variant": config.backbone, "file": sam.name, "sha256": checkpoint.sha256(sam)},
        "clip": {"model": clip_model, "file": clip.name, "sha256": checkpoint.sha256(clip)},
    }
    card = CARD.format(
        name=name, backbone=config.backbone, model=clip_model, sam=sam.name, clip=clip.name
    )
    lineage = {"made_by": "samclip convert", "sources": sources}
    return checkpoint.save(out, net, text_encoder, config, lineage, card=card, half=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .pth or .safetensors file, without running code from it.

    Wrappers that training scripts put around a state dict (``state_dict``, ``module.``) are
    removed. Raises CheckpointError if the file is missing or damaged, or contains other objects.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}: give the path of the downloaded weights") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]}): give a .pth "
            "or .safetensors state dict, not a TorchScript archive or a pickled model"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} is not a state dict: expected tensors by name")
    return {key.removeprefix("module."): value for key, value in state.items()}


def sam_config(sam_state: Mapping[str, Tensor]) -> SamClipConfig:
    """Return ``VIT_B`` with the variant, the frame and the width of the weights.

    Raises CheckpointError if they are not official SAM weights.
    """
    try:
        positions_1hwD = sam_state["image_encoder.pos_embed"]
        neck_width = len(sam_state["image_encoder.neck.0.weight"])
    except KeyError as error:
        raise CheckpointError(f"{error} is missing: expected SAM's official weights") from None
    return replace(
        VIT_B,
        backbone=_variant(sam_state),
        image_size=positions_1hwD.shape[1] * PATCH,
        embed_dim=neck_width,
    )


def pair_config(
    sam_state: Mapping[str, Tensor],
    clip_model: str,
    clip_state: Mapping[str, Tensor],
    name: str,
) -> SamClipConfig:
    """Derive the config from the weights: SAM's variant and frame, CLIP's width and logit scale.

    Raises CheckpointError if they match no variant.
    """
    try:
        text_dim = clip_state["visual.proj"].shape[1]
        logit_scale = math.exp(clip_state["logit_scale"].item())
    except KeyError as error:
        raise CheckpointError(
            f"{error} is missing: expected the weights of an open_clip model with one of CLIP's "
            "original ViTs"
        ) from None
    return replace(
        sam_config(sam_state),
        kind="pair",
        name=name,
        text_dim=text_dim,
        clip_head=None,
        text=TextConfig(tower="open_clip", model=clip_model),
        logit_scale=logit_scale,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="samclip convert",
        description="Make a checkpoint of kind `pair` from official SAM and open_clip weights.",
        epilog="OpenAI's weights were trained with QuickGELU, which open_clip cannot detect from "
        "the file: use the architecture whose name ends in -quickgelu.",
    )
    parser.add_argument("--sam", type=Path, required=True, metavar="FILE", help="SAM's .pth file")
    parser.add_argument(
        "--clip",
        required=True,
        metavar="MODEL:FILE",
        help="open_clip architecture and its weights, such as ViT-L-14:weights.safetensors",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory of the new checkpoint"
    )
    parser.add_argument("--name", default="", help="name of the checkpoint (default: that of DIR)")
    args = parser.parse_args(argv)
    clip_model, colon, clip = args.clip.partition(":")
    if not colon:
        parser.error(f"--clip {args.clip}: expected MODEL:FILE, as in ViT-L-14:weights.safetensors")
    try:
        digest = convert(args.sam, clip_model, Path(clip), args.out, args.name or args.out.name)
    except SamClipError as error:
        print(f"samclip: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {digest}\nServe it: samclip serve --checkpoint {args.out}")
    return 0


def _variant(sam_state: Mapping[str, Tensor]) -> str:
    width = sam_state["image_encoder.pos_embed"].shape[-1]
    blocks = {key.split(".")[2] for key in sam_state if key.startswith("image_encoder.blocks.")}
    for name, size in VARIANTS.items():
        if (size.width, size.depth) == (width, len(blocks)):
            return name
    raise CheckpointError(
        f"the SAM encoder has {len(blocks)} blocks of width {width}, expected one of "
        f"{', '.join(VARIANTS)}"
    )


def fill(module: nn.Module, state: Mapping[str, Tensor], file: Path, architecture: str) -> None:
    """Copy a state dict into a module. Raises CheckpointError unless keys and shapes match."""
    checkpoint.compare_shapes(
        file.name,
        {key: list(value.shape) for key, value in state.items()},
        {key: list(value.shape) for key, value in module.state_dict().items()},
        architecture,
    )
    module.load_state_dict(state)
