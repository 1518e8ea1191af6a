"""manifest.json: the SHA-256 of each file of a checkpoint, and the digest over all files.

A section of its own has the exported graphs and their digest.

The manifest decides which content a file has: new content waits in a hidden file beside the old one
until the manifest lists it. So a process that ends at any step leaves the old checkpoint or the new
one.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from samclip_core import guarded
from samclip_core.errors import CheckpointError
from samclip_core.io.files import locked, replacing

T = TypeVar("T")
MANIFEST = "manifest.json"
MAX_BYTES = 2**20
PAUSES_S = (0, 0.01, 0.05, 0.2)
"""A file that differs is read again after these: another process may be changing the checkpoint."""


def read(directory: Path) -> tuple[dict[str, str], str]:
    """Return the files' digests and the digest over all files, after checking that they agree."""
    try:
        manifest = guarded.read_json(directory / MANIFEST, MAX_BYTES)
        files, value = manifest["files"], manifest["digest"]
        graphs_ = manifest.get("graphs", {}).get("files", {})
        stated = all(isinstance(entry["sha256"], str) for entry in graphs_.values())
        plain = all(map(_is_plain, (*files, *graphs_)))
        consistent = digest_of(files) == value and stated and plain
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        consistent = False
    if not consistent:
        raise damaged(directory, MANIFEST)
    return files, value


def read_graphs(directory: Path) -> dict[str, Any]:
    """Return the section about the exported files, after checking that its digest is theirs."""
    read(directory)
    section = guarded.read_json(directory / MANIFEST, MAX_BYTES).get("graphs", {})
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


def file_names(directory: Path) -> list[str]:
    """Return the names of a checkpoint's files: the manifest, listed files and exported graphs."""
    return [MANIFEST, *read(directory)[0], *read_graphs(directory).get("files", {})]


def write(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Replace a checkpoint's manifest."""
    with replacing(directory / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def content(directory: Path, name: str) -> tuple[bytes, str]:
    """Return the bytes of a listed file, and the digest over all files that lists it.

    Raises CheckpointError if the file is missing or damaged.
    """

    def read_if(path: Path, listed: str) -> bytes | None:
        content = guarded.read(path)
        return content if hashlib.sha256(content).hexdigest() == listed else None

    return _as_listed(directory, name, read_if)


def verified(directory: Path, name: str) -> Path:
    """Return the path of a listed file after checking it. Raises CheckpointError as ``content``."""

    def path_if(path: Path, listed: str) -> Path | None:
        return path if sha256(path) == listed else None

    return _as_listed(directory, name, path_if)[0]


def _as_listed(
    directory: Path, name: str, read_if: Callable[[Path, str], T | None]
) -> tuple[T, str]:
    """Return what ``read_if`` makes of the file that has the listed digest."""
    for pause_s in PAUSES_S:
        time.sleep(pause_s)
        files, value = read(directory)
        if name not in files:
            raise CheckpointError(f"{directory} has no {name}: the checkpoint is of another kind")
        for path in (directory / name, _waiting(directory, name)):
            with suppress(FileNotFoundError, ValueError):
                if (found := read_if(path, files[name])) is not None:
                    return found, value
    raise damaged(directory, name)


def rewrite(directory: Path, changed: Callable[[], Mapping[str, str]]) -> str:
    """Replace small files of a checkpoint, all of them or none; return the new digest.

    ``changed`` reads the checkpoint and returns the new text of each file; meanwhile no other
    process changes it. The exported graphs stay listed. Raises OSError, as where the disk is full.
    """
    with locked(directory):
        _settle(directory)
        texts = changed()
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        files = read(directory)[0] | digests
        new: dict[str, Any] = {"digest": digest_of(files), "files": files}
        if graphs := read_graphs(directory):
            new["graphs"] = graphs
        for name, text in texts.items():
            with replacing(_waiting(directory, name)) as partial:
                partial.write_text(text)
        write(directory, new)
        _settle(directory)
    return str(new["digest"])


def settle(directory: Path) -> None:
    """Complete or undo a change whose process has ended, for programs that read files by name."""
    with locked(directory):
        _settle(directory)


def _settle(directory: Path) -> None:
    files, _ = read(directory)
    for name in files:
        waiting = _waiting(directory, name)
        if waiting.is_file() and sha256(waiting) == files[name]:
            waiting.replace((directory / name).resolve())
        else:
            waiting.unlink(missing_ok=True)


def _waiting(directory: Path, name: str) -> Path:
    return directory / f".{name}.new"


def sha256(path: Path) -> str:
    with guarded.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
