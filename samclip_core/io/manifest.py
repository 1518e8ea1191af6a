"""manifest.json: the SHA-256 of each file of a checkpoint, and the digest over all files.

A section of its own has the exported graphs and their digest.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samclip_core.errors import CheckpointError
from samclip_core.io import hub
from samclip_core.io.files import replacing

MANIFEST = "manifest.json"


def read(directory: Path) -> tuple[dict[str, str], str]:
    """Return the files' digests and the digest over all files, after checking that they agree."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(hub.MAX_MANIFEST_BYTES))
        files, value = manifest["files"], manifest["digest"]
        graphs_ = manifest.get("graphs", {}).get("files", {})
        stated = all(isinstance(entry["sha256"], str) for entry in graphs_.values())
        plain = all(map(_is_plain, (*files, *graphs_)))
        consistent = digest_of(files) == value and stated and plain
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        consistent = False
    if not consistent:
        raise damaged(directory, MANIFEST)
    return files, value


def read_graphs(directory: Path) -> dict[str, Any]:
    """Return the section about the exported files, after checking that its digest is theirs."""
    read(directory)
    section = json.loads((directory / MANIFEST).read_bytes()).get("graphs", {})
    try:
        consistent = not section or section["digest"] == digest_of_graphs(section["files"])
    except (KeyError, TypeError, AttributeError):
        consistent = False
    if not consistent:
        raise CheckpointError(
            f"the list of graphs in {directory / MANIFEST} differs from its digest: copy the "
            'checkpoint again, or delete "graphs" there and create them with `samclip export`'
        )
    return dict(section)


def write(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Replace a checkpoint's manifest."""
    with replacing(directory / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def _is_plain(name: str) -> bool:
    """Return whether this is a file's name on any system: no path, and nothing that is hidden."""
    return name.isprintable() and name[:1] not in ("", ".") and not {*name} & {*"/\\:"}


def damaged(directory: Path, name: str) -> CheckpointError:
    """Return the error for a file that differs from its digest."""
    return CheckpointError(
        f"{directory / name} is missing or differs from its digest in {MANIFEST}: the checkpoint "
        "is damaged or was edited; copy it again, or convert or train it again"
    )


def digest_of(files: Mapping[str, str]) -> str:
    """Return the digest over files from their own."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_of_graphs(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the digest over exported files from the manifest's entries for them."""
    return digest_of({name: entry["sha256"] for name, entry in files.items()})
