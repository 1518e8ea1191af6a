"""Checkpoints on the Hugging Face hub, named ``hf://owner/name`` or ``hf://owner/name@revision``.

They are kept in the hub's own cache, as every program with ``huggingface_hub`` does.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from samclip_core.errors import CheckpointError

Names = Callable[[Path], Sequence[str]]

_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def fetch(name: str, manifest: str, file_names: Names) -> Path:
    """Return the directory of a checkpoint, after a download if this machine has none of this name.

    A later version on the hub is fetched only under another revision, so that all processes of a
    service agree. ``file_names`` returns the files that a manifest lists; they are not verified
    here. Raises CheckpointError.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise CheckpointError(f"{name!r} is not hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    try:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{name} needs huggingface_hub, which is not installed: pip install 'samclip[hub]'"
        ) from error
    try:
        try:
            return _snapshot(parts, manifest, file_names, local_files_only=True)
        except LocalEntryNotFoundError:
            return _snapshot(parts, manifest, file_names, local_files_only=False)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{name} cannot be fetched from the hub: {error}") from error


def _snapshot(
    name: re.Match[str], manifest: str, file_names: Names, local_files_only: bool
) -> Path:
    """Return the folder with all files of the manifest."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def get(*names: str) -> Path:
        folder = snapshot_download(
            name[1],
            revision=name[2],
            allow_patterns=list(names),
            local_files_only=local_files_only,
        )
        return Path(folder)

    directory = get(manifest)
    if not (directory / manifest).is_file():
        raise CheckpointError(
            f"{name[1]} has no {manifest}: expected a repository that `samclip push` has written"
        )
    names = file_names(directory)
    if all((directory / one).is_file() for one in names):
        return directory
    if local_files_only:
        raise LocalEntryNotFoundError(f"{directory} is not complete")
    return get(*names)
