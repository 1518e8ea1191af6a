"""The origins of a student's teachers: their names and digests, and the licences of their parts."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from samclip_core.commands.models import MODELS
from samclip_core.io import checkpoint
from samclip_core.licence import NOT_STATED, strictest

Part: TypeAlias = dict[str, str]
"""``address`` and ``licence`` of a part, as the lineage of a published model has them."""
RADIO = "NVIDIA's: that of C-RADIO allows commercial use, that of RADIO does not"
"""The licence of a RADIO that was converted from files."""


def named(teacher: Path) -> str:
    """Return the name and the digest of a teacher's file or checkpoint."""
    if checkpoint.is_here(teacher):
        return f"{checkpoint.read_config(teacher).name} {checkpoint.digest(teacher)}"
    return f"{teacher.name} {checkpoint.sha256(teacher)}"


def parts_of(teachers: Iterable[Path]) -> list[Part]:
    """Return the parts of the teachers, each once, with their licences as far as they are known."""
    found = [part for one in teachers for part in _parts(one)]
    return [part for number, part in enumerate(found) if part not in found[:number]]


def licences(parts: Sequence[Part]) -> dict[str, Any]:
    """Return what a lineage says of its teachers' parts: each of them, and the strictest licence.

    Without parts, which only a student of this project's own teachers is, it says nothing.
    """
    if not parts:
        return {}
    return {"published": [*parts], "licence": strictest(part["licence"] for part in parts)}


def _parts(teacher: Path) -> list[Part]:
    if not checkpoint.is_here(teacher):
        return [_of_file(teacher.name, checkpoint.sha256(teacher))]
    lineage = json.loads(checkpoint.read_file(teacher, checkpoint.LINEAGE))
    published: list[Part] = lineage.get("published", [])
    if published:
        return published
    parts = [
        _of_file(one["file"], one["sha256"], RADIO if name == "radio" else NOT_STATED)
        for name, one in lineage.get("sources", {}).items()
    ]
    return parts or [{"address": named(teacher), "licence": NOT_STATED}]


def _of_file(name: str, sha256: str, otherwise: str = NOT_STATED) -> Part:
    """Return a file with the licence of the published model whose digest it has."""
    for source in [source for model in MODELS.values() for source in model.sources]:
        if sha256 in source.files.values():
            return {"address": source.address, "licence": source.licence}
    return {"address": f"{name} {sha256}", "licence": otherwise}
