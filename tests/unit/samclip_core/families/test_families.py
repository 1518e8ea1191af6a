"""Each family has the modules and functions that ``Family`` promises, and names of its own."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch
from safetensors.torch import save_file

from samclip_core import families
from samclip_core.config import VIT_B
from samclip_core.errors import CheckpointError
from samclip_core.families import FAMILIES, KINDS, SIZES, TOWERS
from samclip_core.families.family import Family
from samclip_core.io.shapes import shapes_of
from samclip_core.nn.network import SAM_PARTS, build
from samclip_core.nn.official_sam import read_sam, sam_config

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@each_family
def test_its_modules_have_what_checkpoints_and_commands_call(family: Family) -> None:
    needed = {
        "network": [
            *(["image_encoder"] if family.backbones else []),
            *(["clip_head"] if family.kind else []),
            *(["text_encoder"] if family.tower else []),
            *(["read", "describe"] if family.files else []),
        ],
        "files": ["is_here", "load"] if family.reads_folders else [],
        "tokenizer": ["of"] if family.tower not in ("", "open_clip") else [],
    }
    for module, functions in needed.items():
        if functions:
            assert set(functions) <= vars(family.module(module)).keys(), module


@each_family
def test_an_image_encoder_has_layers_in_float(family: Family) -> None:
    assert bool(family.keep_float) is bool(family.backbones)


def test_names_are_of_one_family() -> None:
    for names in (
        [family.name for family in FAMILIES],
        [name for family in FAMILIES for name in family.backbones],
        [name for family in FAMILIES for name in family.files],
        [row.name for family in FAMILIES for row in family.models],
    ):
        assert max(Counter(names).values()) == 1, names
    for table, field in ((SIZES, "key"), (KINDS, "kind"), (TOWERS, "tower")):
        assert len(table) == sum(bool(getattr(family, field)) for family in FAMILIES)


def test_every_folder_is_in_the_list() -> None:
    found = {one.name for one in iter_modules(families.__path__)} - {"family", "published"}
    assert {family.name for family in FAMILIES} == found


@pytest.mark.parametrize("shape", [(), (0,), (2,)])
@pytest.mark.parametrize(
    "keys",
    [
        [*shapes_of(partial(build, replace(VIT_B, kind="pair", clip_head=None), SAM_PARTS))],
        ["image_encoder.patch_embed.seq.0.c.weight"],
        ["vision_encoder.backbone.pos_embed"],
        ["image_encoder.trunk.pos_embed"],
        ["image_encoder.backbone.input_stem.op_list.0.conv.weight"],
    ],
    ids=["sam", "mobile-sam", "transformers", "sam2", "efficientvit"],
)
def test_published_files_with_other_shapes_are_refused(
    keys: list[str], shape: tuple[int, ...], tmp_path: Path
) -> None:
    save_file({key: torch.zeros(shape) for key in keys}, tmp_path / "sam.safetensors")
    with pytest.raises(CheckpointError):
        sam_config(read_sam(tmp_path / "sam.safetensors"))
