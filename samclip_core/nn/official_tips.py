"""Load the published files of a TIPSv2 from a folder.

Either model.safetensors and config.json of its page on the hub, or its authors' two files
``*_vision.npz`` and ``*_text.npz``; and tokenizer.model, of SentencePiece. The sizes are those of
the tensors.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import Filter, SamClipConfig, TextConfig, TipsConfig
from samclip_core.errors import CheckpointError
from samclip_core.io.official import fill, loaded, read_state, renamed
from samclip_core.nn.text_encoder import TipsTextEncoder
from samclip_core.nn.tokenizer import tips_tokenizer
from samclip_core.nn.transformers_clip import prepared_filter, read_processor

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)
"""TCL's, with which its authors evaluate maps."""
SIDE, TOKENS = 448, 64
SO_WIDTH = 1152
MOST_PACKED = 8
"""Times that a .npz file may grow when it is unpacked; weights hardly shrink."""
State = dict[str, Tensor]
_AGAIN = "download every file of one model again"

_VISION = (
    (r"^mask_token$", ""),  # of the training
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.(c_fc|w12)\.", ".mlp.fc1."),
    (r"\.mlp\.(c_proj|w3)\.", ".mlp.fc2."),
)
_TEXT = (
    (r"^token_embedding\.", "words."),
    (r"^ln_final\.", "transformer.norm."),
    (r"^transformer\.resblocks\.", "transformer.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".linear1."),
    (r"\.mlp\.c_proj\.", ".linear2."),
)


@dataclass(frozen=True)
class OfficialTips:
    """A TIPSv2: the states of its towers, with our keys, and its tokenizer."""

    text: TextConfig
    weights: Path
    vision_state: State
    text_state: State
    temperature: float
    tokenizer_json: str

    def describe_in(self, config: SamClipConfig) -> SamClipConfig:
        """Return ``config`` with this model's towers, width, scale and templates."""
        return replace(
            config,
            text=self.text,
            text_dim=self.text.width,
            logit_scale=1 / self.temperature,
            templates=TEMPLATES,
        )

    def text_encoder(self) -> TipsTextEncoder:
        """Return the frozen text tower. Raises CheckpointError if its tensors do not fit."""
        encoder = TipsTextEncoder(self.text, self.tokenizer_json)
        fill(encoder, self.text_state, self.weights, "TIPSv2's text tower")
        return encoder.eval().requires_grad_(False)

    def fill_tower(self, tower: nn.Module) -> None:
        """Copy the image tower's weights. Raises CheckpointError if they do not fit."""
        fill(tower, self.vision_state, self.weights, "TIPSv2's image tower")


def is_tips(folder: Path) -> bool:
    """Return whether a folder has the files of a TIPSv2."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return config.get("model_type") == "tipsv2"
    except (OSError, ValueError, AttributeError):
        return any(folder.glob("*_vision.npz")) or any(folder.glob("*_text.npz"))


def load_official_tips(folder: Path, side: int | None = None) -> OfficialTips:
    """Load a model that reads frames of ``side`` pixels, or of its page's.

    Raises CheckpointError if a file is missing or damaged, or if the files do not fit each other.
    """
    try:
        config, weights, state = _of_hub(folder) if _is_page(folder) else _of_authors(folder)
        side, filter = _preparation(folder, side)
        vision = renamed(_part(state, "vision_encoder."), _VISION)
        text = renamed(_part(state, "text_encoder."), _TEXT)
        tower, words = _tower(vision, side, config), _words(text, config)
        stated = state.get("text_encoder.temperature", state.get("temperature"))
        temperature = config["temperature_init_value"] if stated is None else stated.item()
        if not (type(temperature) is float and 0 < temperature < math.inf):
            raise CheckpointError(f"{folder} has no usable temperature of scores: {temperature}")
        _fit(vision, text, tower, config)
    except KeyError as error:
        raise CheckpointError(f"{folder} has no {error}, as every TIPSv2 has: {_AGAIN}") from error
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no TIPSv2 ({error}): {_AGAIN}") from error
    if tower.width != words.width:
        raise CheckpointError(
            f"{folder} has an image tower of width {tower.width} and a text tower of width "
            f"{words.width}: take both files of one size, as B"
        )
    name = folder.resolve().name if _is_page(folder) else weights.stem.removesuffix("_vision")
    words = replace(words, model=name, image=tower, filter=filter)
    tokenizer = tips_tokenizer(folder, words)
    return OfficialTips(words, weights, vision, text, temperature, tokenizer)


def _is_page(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _of_hub(folder: Path) -> tuple[dict[str, Any], Path, State]:
    config, weights = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    return config, weights, read_state(weights)


def _of_authors(folder: Path) -> tuple[dict[str, Any], Path, State]:
    """Read both files, whose keys get the prefixes that they have on the hub."""
    found = {part: sorted(folder.glob(f"*_{part}.npz")) for part in ("vision", "text")}
    if any(len(files) != 1 for files in found.values()):
        names = [file.name for files in found.values() for file in files]
        raise CheckpointError(
            f"{folder} has {', '.join(names)}: expected one file *_vision.npz and one *_text.npz"
        )
    state = {
        f"{part}_encoder.{key}": value
        for part, (file,) in found.items()
        for key, value in loaded(file, _read_npz).items()
    }
    return {}, found["vision"][0], state


def _read_npz(path: Path) -> State:
    with zipfile.ZipFile(path) as archive:
        stated = sum(entry.file_size for entry in archive.infolist())
    if stated > MOST_PACKED * path.stat().st_size:
        raise ValueError(f"{path} states {stated:,} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def _part(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}


def _preparation(folder: Path, side: int | None) -> tuple[int, Filter]:
    """Return the side of the frame and the filter that makes it, as the page says."""
    processor = {"resample": Image.Resampling.BILINEAR, "do_normalize": False}
    processor |= read_processor(folder)
    stated = processor.get("size") or {"height": SIDE, "width": SIDE}
    filter = prepared_filter(processor, stated["height"], folder.name)
    if processor["do_normalize"]:
        raise CheckpointError(f"{folder} normalises pixels: expected TIPSv2's, which are 0 to 1")
    return side or stated["height"], filter


def _tower(vision: State, side: int, config: Mapping[str, Any]) -> TipsConfig:
    """Read the sizes of the image tower; the table of positions is square."""
    width, fc1 = len(vision["norm.weight"]), vision["blocks.0.mlp.fc1.bias"]
    patch = vision["patch_embed.proj.weight"].shape[-1]
    return TipsConfig(
        width=width,
        depth=_blocks(vision, "blocks."),
        heads=_heads(width, config.get("vision_config")),
        hidden=len(fc1),
        gated=len(fc1) != vision["blocks.0.mlp.fc2.weight"].shape[1],
        patch=patch,
        side=side // patch * patch,
    )


def _words(text: State, config: Mapping[str, Any]) -> TextConfig:
    """Read the sizes of the text tower."""
    vocabulary, width = text["words.weight"].shape
    return TextConfig(
        tower="tips",
        layers=_blocks(text, "transformer.layers."),
        width=width,
        heads=_heads(width, config.get("text_config")),
        hidden=len(text["transformer.layers.0.linear1.bias"]),
        vocabulary=vocabulary,
        max_tokens=TOKENS,
    )


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})


def _heads(width: int, described: Mapping[str, Any] | None) -> int:
    """Return the number of heads, of which tensors do not tell: that of the published widths."""
    published = 16 if width == SO_WIDTH else max(4, width // 64)
    heads: int = (described or {}).get("num_attention_heads", published)
    if width % heads:
        raise ValueError(f"{heads} heads of a width of {width}")
    return heads


def _fit(vision: State, text: State, tower: TipsConfig, config: Mapping[str, Any]) -> None:
    """Compute what our towers store: positions of the frame, of tokens, and scaled words."""
    positions_11D, table_1ND = vision["pos_embed"].split([1, vision["pos_embed"].shape[1] - 1], 1)
    grid = (tower.side // tower.patch,) * 2
    vision["pos_embed"] = positions_of(table_1ND, grid)
    vision["cls_token"] = vision["cls_token"] + positions_11D
    text.pop("temperature", None)
    width = text["words.weight"].shape[1]
    if (config.get("text_config") or {}).get("scale_sqrt_depth", True):
        text["words.weight"] = text["words.weight"] * width**0.5
    text["positions.weight"] = sinusoids(TOKENS, width)


def positions_of(table_1ND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a square table of positions, resized to ``grid`` (rows, columns): 1×N×D."""
    side = math.isqrt(table_1ND.shape[1])
    table_1Dhw = table_1ND.mT.unflatten(2, (side, side))
    if grid != (side, side):
        table_1Dhw = F.interpolate(table_1Dhw, grid, mode="bilinear", antialias=True)
    return table_1Dhw.flatten(2).mT


def sinusoids(count: int, width: int) -> Tensor:
    """Return the positions of tokens: sines, then cosines, of wavelengths to 10,000 · 2π."""
    frequencies = torch.exp(torch.linspace(0, -math.log(10_000), width // 2))
    angles_NF = torch.arange(count)[:, None] * frequencies
    return torch.cat([angles_NF.sin(), angles_NF.cos()], dim=1)
