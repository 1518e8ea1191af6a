"""Nothing outside ``samclip_core.families`` asks for a family by its name."""

import re

from samclip_core.families import FAMILIES
from tests.import_graph import MODULES, imported

OWN = {"sam", "clip", "edge", "radio"}
"""SAM and CLIP are in the name of the program; the others are kinds of checkpoint, too."""
ALLOWED = {
    "samclip_core.commands.convert": "its help and its examples name published files",
    "samclip_core.commands.convert_radio": "the option --radio, which takes MobileSAM beside it",
    "training.distillation.stages": "a recipe starts from MobileSAM",
    "training.distillation.teachers": "a recipe starts from MobileSAM",
    "training.merges": "a recipe starts from MobileSAM",
    "training.recipes": "a recipe starts from MobileSAM",
    "training.train": "a recipe starts from MobileSAM",
}
MAY_IMPORT = {
    "samclip_core.nn.network": "parts that a family has no network for are SAM's",
    "samclip_core.nn.vit": "SAM's ViT is what the others' networks are made of",
    "services.gateway.openapi": "the licence of the bundled weights",
    "training.results.card": "the licence of the bundled weights",
    **ALLOWED,
}
OUTSIDE = {
    name: path
    for name, path in MODULES.items()
    if not name.startswith("samclip_core.families") and name.split(".")[0] != "samclip"
}


def _pattern(name: str) -> str:
    """Return an expression for a name in any spelling; a short one has to be a whole word."""
    parts = re.findall(r"[a-z]+|[0-9]+", name.lower())
    return r"\b" + "[-_ .]?".join(parts) + (r"\b" if len(name) < 4 else "")


def test_no_family_is_named_outside() -> None:
    others = [family for family in FAMILIES if family.name not in OWN]
    names = {
        name
        for one in others
        for name in (one.name, one.title, one.key, *one.trunks, *one.backbones)
        if name
    }
    named = re.compile("|".join(map(_pattern, names)))
    for module, path in OUTSIDE.items():
        if module not in ALLOWED:
            found = named.search(path.read_text().lower())
            assert not found, f"{path} names {found[0]!r}: ask config.family instead"


def test_no_family_is_imported_outside() -> None:
    """``config.family`` is the way to one, and ``Family.module`` to its modules."""
    for module in OUTSIDE.keys() - MAY_IMPORT.keys():
        found = {
            name
            for name in imported(OUTSIDE[module])
            if re.match(r"samclip_core\.families\..", name)
        }
        assert found <= {f"samclip_core.families.{name}" for name in ("family", "published")}, (
            f"{module} imports {found}"
        )
