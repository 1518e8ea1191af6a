"""Model cards: what each says in its YAML, and the page of a repository on the hub."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from samclip_core import guarded
from samclip_core.commands import models
from samclip_core.config import SamClipConfig
from samclip_core.errors import plain
from samclip_core.families import KINDS
from samclip_core.families.published import Source
from samclip_core.io import checkpoint, sources

if TYPE_CHECKING:  # `samclip push` does without
    from torch import nn

_KNOWN_LICENCES = ("apache-2.0", "mit")
"""Those that the hub knows by these names."""
_LABELS = {one.licence for model in models.MODELS.values() for one in model.sources}
"""This program's own names of licences, with remarks."""
_USE = """
## Use

This page needs the package samclip: in a clone of it, run `pip install '.[torch,hub]'`.

```python
from samclip_core import SamClip

model = SamClip.load("hf://{repository}")
photo = open("photo.jpg", "rb").read()
model.classify(photo, ["a cat", "a dog"])
{masks}```

As a service: `samclip serve --checkpoint hf://{repository}`.
"""


def save(
    out: Path,
    net: "nn.Module",
    text_encoder: "nn.Module",
    config: SamClipConfig,
    made_of: Mapping[str, Any],
    published: Sequence[Source],
    text: str,
) -> str:
    """Write a converted checkpoint with a card that begins with ``text``; return its digest."""
    lineage = sources.lineage(made_of, published)
    card = described(text, config, lineage)
    return checkpoint.save(out, net, text_encoder, config, lineage, card=card, half=False)


def file_of(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": checkpoint.sha256(path)}


def described(text: str, config: SamClipConfig, lineage: Mapping[str, Any]) -> str:
    """Return a card with YAML at its top, and the licences of published parts at its end."""
    published = lineage.get("published", ())
    licence, name = _licence([one["licence"] for one in published], lineage.get("sources", ()))
    bundled = config.kind in KINDS and KINDS[config.kind].licence
    if bundled and not (published or lineage.get("sources")):
        licence = "apache-2.0"
    addresses = [one["address"] for one in published if one["address"].startswith("hf://")]
    pages = dict.fromkeys(one.removeprefix("hf://").partition("@")[0] for one in addresses)
    data = ModelCardData(
        license=licence,
        license_name=name,
        library_name="samclip",
        pipeline_tag="mask-generation" if config.masks else "zero-shot-image-classification",
        tags=["sam-clip", "zero-shot-image-classification", "image-feature-extraction"],
        base_model=[*pages] or None,
    )
    parts = "".join(f"- {plain(one['licence'])}: {plain(one['address'])}\n" for one in published)
    return f"---\n{data.to_yaml()}\n---\n\n{text}" + (parts and f"\n## Licences\n\n{parts}")


def _licence(published: Sequence[str], parts: Collection[str]) -> tuple[str, str | None]:
    """Return the hub's name for the licence of all parts, or "other" and their own names."""
    # Only this program's remarks are cut: those of others may be conditions.
    heads = [one.partition(" (")[0] if one in _LABELS else one for one in published]
    heads = [*dict.fromkeys(head.lower() for head in heads)]
    if len(published) < len(parts):  # the others are files of any licence
        heads.append("other")
    if len(heads) == 1 and heads[0] in _KNOWN_LICENCES:
        return heads[0], None
    # The hub accepts no spaces in the name of a licence.
    names = [re.sub(r"[^a-z0-9.]+", "-", head).strip("-") or "other" for head in heads]
    name = "-and-".join(dict.fromkeys(names))
    return "other", None if name in ("", "other") else name


def page(directory: Path, repository: str) -> str:
    """Return the page of a checkpoint on the hub: its card, and how to use the repository."""
    text = guarded.read(directory / checkpoint.CARD).decode()
    config = checkpoint.read_config(directory)
    if not text.startswith("---\n"):
        lineage = checkpoint.read_lineage(directory)
        text = described(text, config, lineage)
    masks = 'model.find(photo, ["a cat"])\n' if config.masks else ""
    return text + _USE.format(repository=repository, masks=masks)
