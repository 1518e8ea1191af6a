"""Each family has the modules and functions that ``Family`` promises, and names of its own."""

from collections import Counter
from pkgutil import iter_modules

import pytest

from samclip_core import families
from samclip_core.families import FAMILIES, KINDS, SIZES, TOWERS
from samclip_core.families.family import Family

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
