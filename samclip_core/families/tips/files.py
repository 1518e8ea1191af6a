"""Load the published files of a TIPSv2 from a folder.

Either model.safetensors and config.json of its page on the hub, or its authors' two files
``*_vision.npz`` and ``*_text.npz``; and tokenizer.model, of SentencePiece. The sizes are those of
the tensors.
"""

import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core import guarded
from samclip_core.config import Filter, ImageTowerConfig, SamClipConfig, TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.tips import tokenizer
from samclip_core.families.tips.network import TipsTextEncoder, TipsTower
from samclip_core.io.official import check, loaded, read_state, renamed
from samclip_core.nn.transformers_clip import prepared_filter, read_processor

TEMPLATES = (
    "itap of a {}.", "a bad photo of a {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.", "a photo of many {}.",
    "a photo of {}s.",
)  # fmt: skip
"""TCL's, with which its authors evaluate maps."""
SIDE, TOKENS, SO_WIDTH = 448, 64, 1152
FILTER: Filter = "bilinear"
MOST_PACKED = 8
"""Times that a .npz file may grow when it is unpacked; weights hardly shrink."""
State = dict[str, Tensor]

_VISION = (
    (r"^mask_token$", ""),  # of the training
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.(c_fc|w12)\.", ".mlp.fc1."),
    (r"\.mlp\.(c_proj|w3)\.", ".mlp.fc2."),
)
_TEXT = (
    (r"^transformer\.resblocks\.", "transformer.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".linear1."),
    (r"\.mlp\.c_proj\.", ".linear2."),
)
_DAMAGED = ValueError, LookupError, TypeError, AttributeError, RecursionError
MOST_SIDE = 4096  # pixels of a frame that a page may state
MOST_POSITIONS = 2**28
"""Numbers of a table of positions for the frame."""


@dataclass(frozen=True)
class OfficialTips:
    """A TIPSv2: the states of its towers, with our keys, and its tokenizer."""

    text: TextConfig
    weights: Path
    text_weights: Path | None
    vision_state: State
    text_state: State
    logit_scale: float
    tokenizer_json: str

    def describe_in(self, config: SamClipConfig) -> SamClipConfig:
        """Return ``config`` with this model's towers, width, scale and templates."""
        scale, width = self.logit_scale, self.text.width
        return replace(
            config, text=self.text, text_dim=width, logit_scale=scale, templates=TEMPLATES
        )

    def text_encoder(self) -> TipsTextEncoder:
        """Return the frozen text tower. Raises CheckpointError if its tensors do not fit."""
        make, weights = partial(TipsTextEncoder, self.text, self.tokenizer_json), self.text_weights
        check(make, self.text_state, (weights or self.weights).name, "TIPSv2's text tower")
        encoder = make()
        encoder.load_state_dict(self.text_state)
        return encoder.eval().requires_grad_(False)

    def fill_tower(self, tower: nn.Module) -> None:
        """Copy the image tower's weights."""
        tower.load_state_dict(self.vision_state)


def is_here(folder: Path) -> bool:
    """Return whether a folder has files of a TIPSv2."""
    try:
        return bool(guarded.read_json(folder / "config.json")["model_type"] == "tipsv2")
    except (*_DAMAGED, OSError):
        return any(folder.glob("*_vision.npz")) or any(folder.glob("*_text.npz"))


def load(folder: Path, side: int | None = None) -> OfficialTips:
    """Load a model that reads frames of ``side`` pixels, or of its page's.

    Raises CheckpointError if a file is missing or damaged, or if the files do not fit each other.
    """
    try:
        page = (folder / "config.json").is_file()
        config, state, weights, text_weights = (_of_hub if page else _of_authors)(folder)
        vision, text = _part(state, "vision", _VISION), _part(state, "text", _TEXT)
        temperature = text.pop("temperature", state.get("temperature"))
        scale = 1 / float(config["temperature_init_value"] if temperature is None else temperature)
        tower = _tower(vision, _side(folder, side), config.get("vision_config", {}))
        words = replace(_words(text, config.get("text_config", {})), image=tower)
    except (*_DAMAGED, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} has not the files of a TIPSv2 ({type(error).__name__}: {error}): download "
            "every file of one model again"
        ) from error
    if tower.width != words.width or not 0 < scale < math.inf:
        raise CheckpointError(
            f"{folder} has an image tower of width {tower.width}, a text tower of width "
            f"{words.width} and a scale of {scale:.5g}: take both files of one model, as of B"
        )
    name = folder.resolve().name if page else weights.stem.removesuffix("_vision")
    words = replace(words, model=name)
    guarded.check_layers(asdict(words), str(folder))
    check(partial(TipsTower, tower), vision, weights.name, "TIPSv2's image tower")
    json = tokenizer.published(folder / "tokenizer.model", words)
    return OfficialTips(words, weights, text_weights, vision, text, scale, json)


def _of_hub(folder: Path) -> tuple[Any, ...]:
    weights = folder / "model.safetensors"
    return guarded.read_json(folder / "config.json"), read_state(weights), weights, None


def _of_authors(folder: Path) -> tuple[Any, ...]:
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
    return {}, state, *found["vision"], *found["text"]


def _read_npz(path: Path) -> State:
    with guarded.open_regular(path) as file:
        with zipfile.ZipFile(file) as archive:
            stated = sum(entry.file_size for entry in archive.infolist())
        if stated > MOST_PACKED * path.stat().st_size:
            raise ValueError(f"{path} states {stated:,} bytes")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}


def _part(state: State, name: str, names: Iterable[tuple[str, str]]) -> State:
    prefix = f"{name}_encoder."
    part = {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}
    if empty := [key for key, tensor in part.items() if not tensor.numel()]:  # of any stated size
        raise ValueError(f"{empty[0]} has no numbers")
    return renamed(part, names)


def _side(folder: Path, side: int | None) -> int:
    """Return the side of the frame; raise ValueError if the page prepares pixels otherwise."""
    processor: dict[str, Any] = {"resample": 2, "size": {"height": SIDE, "width": SIDE}}
    processor |= read_processor(folder)
    stated: int = processor["size"]["height"]
    if not 0 < stated <= MOST_SIDE:
        raise ValueError(f"a frame of {stated} pixels, expected 1 to {MOST_SIDE}")
    filter = prepared_filter(processor, stated, folder.name)
    if processor.get("do_normalize") or filter != FILTER:
        raise ValueError(f"pixels are {filter} or normalised, and TIPSv2's {FILTER} and 0 to 1")
    return side or stated


def _tower(state: State, side: int, described: Mapping[str, Any]) -> ImageTowerConfig:
    """Read the sizes of the image tower, and give its state the positions of the frame."""
    width, patch = len(state["norm.weight"]), state["patch_embed.proj.weight"].shape[-1]
    hidden = len(state["blocks.0.mlp.fc1.bias"])
    gated = hidden != state["blocks.0.mlp.fc2.weight"].shape[1]
    depth, heads = _blocks(state, "blocks."), _heads(width, described)
    table_1ND, grid = state["pos_embed"], side // patch
    if grid**2 * width > MOST_POSITIONS:
        raise ValueError(f"positions for {grid}×{grid} patches of width {width}")
    state["cls_token"] = state["cls_token"] + table_1ND[:, :1]
    state["pos_embed"] = positions_of(table_1ND[:, 1:], (grid, grid))
    sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
    return ImageTowerConfig(**sizes, gated=gated, patch=patch, side=grid * patch)


def _words(state: State, described: Mapping[str, Any]) -> TextConfig:
    """Read the sizes of the text tower; scale its words, and give its state the positions."""
    vocabulary, width = state["token_embedding.weight"].shape
    hidden = len(state["transformer.layers.0.linear1.bias"])
    layers, heads = _blocks(state, "transformer.layers."), _heads(width, described)
    state["token_embedding.weight"] = state["token_embedding.weight"] * width**0.5
    state["positions.weight"] = sinusoids(TOKENS, width)
    sizes: dict[str, Any] = {"layers": layers, "width": width, "heads": heads, "hidden": hidden}
    sizes |= {"vocabulary": vocabulary, "max_tokens": TOKENS}
    return TextConfig(tower="tips", filter=FILTER, **sizes)


def _blocks(state: State, prefix: str) -> int:
    return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})


def _heads(width: int, described: Mapping[str, Any]) -> int:
    """Return a page's heads, or those of the published sizes, which tensors do not tell."""
    published = 16 if width == SO_WIDTH else max(4, width // 64)
    heads = int(described.get("num_attention_heads", published))
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads of a width of {width}")
    return heads


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
