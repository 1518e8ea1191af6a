"""Checkpoints on the Hugging Face hub, named ``hf://owner/name`` or ``hf://owner/name@revision``.

They are kept in the hub's own cache, as every program with ``huggingface_hub`` does.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samclip_core.errors import CheckpointError
from samclip_core.io import manifest

PLACE = "samclip/"
"""Folder of a checkpoint in a repository."""
MAX_BYTES = 64 * 2**30
"""The files of one checkpoint; the largest published encoders have a tenth of it."""
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def fetch(name: str) -> Path:
    """Return the directory of a checkpoint, after a download if this machine has none of this name.

    A later version on the hub is fetched only under another revision, so that all processes of a
    service agree. The files are not verified here. Raises CheckpointError.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise CheckpointError(f"{name!r} is not hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return _snapshot(parts, local_files_only=True)
        except LocalEntryNotFoundError:
            return _snapshot(parts, local_files_only=False)
    except errors() as error:
        raise CheckpointError(f"{name} cannot be fetched from the hub: {reason(error)}") from error


def errors() -> tuple[type[Exception], ...]:
    """Return what the hub's library raises, which includes the errors of its HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError, ValueError)  # ValueError: an impossible name


def reason(error: Exception) -> str:
    """Return one line for people about an error of the hub's library."""
    from httpx import TransportError
    from huggingface_hub.errors import (
        DryRunError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError):
        return (
            "its licence must be accepted first: do so on its page on the hub, log in here with "
            "`hf auth login` as the same user, and run the command again"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            "the hub has no such repository, or you may not read it: check the name, and log in "
            "with `hf auth login` and a token that may read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision: give a branch, tag or commit of it"
    if isinstance(error, LocalEntryNotFoundError | DryRunError):
        return "the hub cannot be reached, or has no such repository"
    if isinstance(error, TransportError):
        return (
            f"the hub cannot be reached ({error}): check the network, and HF_ENDPOINT if it is set"
        )
    return next(filter(None, str(error).splitlines()), type(error).__name__)


def _snapshot(name: re.Match[str], local_files_only: bool) -> Path:
    """Return the folder with all files of the manifest."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    where: dict[str, Any] = {"revision": name[2], "local_files_only": local_files_only}
    directory = download_manifest(name[1], **where)
    names = manifest.file_names(directory)
    if all((directory / file).is_file() for file in names):
        return directory
    if local_files_only:
        raise LocalEntryNotFoundError(f"{directory} is not complete")
    return download(name[1], [PLACE + file for file in names], **where) / PLACE


def download_manifest(repository: str, **where: Any) -> Path:
    """Return the folder of a repository's checkpoint, which has the manifest.

    Raises CheckpointError if the repository has none, and LocalEntryNotFoundError if only this
    machine's files of it were searched.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = manifest.MANIFEST
    directory = download(repository, [PLACE + name], manifest.MAX_BYTES, **where) / PLACE
    if (directory / name).is_file():
        return directory
    if where.get("local_files_only"):  # another program may have fetched other files
        raise LocalEntryNotFoundError(f"{directory} has no {name}")
    raise CheckpointError(
        f"{repository} has no {name}: expected a repository that `samclip push` has "
        "written. Publishers' weights are converted: give `samclip convert` this name as "
        f"--sam, --clip or --radio, such as --clip hf://{repository}"
    )


def download(repository: str, names: Sequence[str], most: int = MAX_BYTES, **where: Any) -> Path:
    """Return the folder of a repository's files of these names; ``where`` is the hub's.

    Raises CheckpointError if more than ``most`` bytes are stated or arrive, and the hub's errors.
    """
    from huggingface_hub import snapshot_download

    where["allow_patterns"] = [glob.escape(name) for name in names]
    if not where.get("local_files_only"):  # Xet ignores errors of ``Bounded``: ask for sizes first
        stated = snapshot_download(repository, dry_run=True, **where)
        if sum(one.file_size or 0 for one in stated) > most:
            raise _too_much(repository, most)
    return Path(snapshot_download(repository, tqdm_class=bounded(repository, most), **where))


def bounded(source: str, most: int) -> Any:
    """Return a progress bar of a download that raises CheckpointError if more bytes arrive."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bounded(tqdm):  # the hub's only way to see bytes as they arrive
        def update(self, n: float | None = 1) -> bool | None:
            before = getattr(self, "arrived", self.n or 0)  # n stays 0 where no bar is shown
            self.arrived: float = before + (n or 0)
            if self.arrived > most:
                raise _too_much(source, most)
            return super().update(n)

    return Bounded


def _too_much(source: str, most: int) -> CheckpointError:
    return CheckpointError(f"{source} sends more than the limit of {most:,} bytes")
