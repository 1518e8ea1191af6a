"""``samclip push``: publish a checkpoint on the Hugging Face hub."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core import guarded
from samclip_core.commands import card
from samclip_core.errors import CheckpointError, plain
from samclip_core.io import checkpoint, hub, manifest

_CARD_KEY = "card_sha256"
"""In the config at the root: the digest of the card that a push has written."""
_TYPE = "samclip"


def main(argv: Sequence[str] | None = None) -> int:
    """Upload a checkpoint; print its address and digest; return the exit code."""
    args = parser().parse_args(argv)
    errors: tuple[type[Exception], ...] = (CheckpointError, *hub.errors())
    try:
        directory = checkpoint.resolve(args.checkpoint)
        address = push(directory, args.repository, args.private)
    except errors as error:
        print(plain(f"samclip push: {hub.reason(error)}"), file=sys.stderr)
        return 1
    print(f"{address}\ndigest {checkpoint.shown(checkpoint.identity(directory), 64)}")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip push",
        description="""Publish a checkpoint as a model repository on the Hugging Face hub, which is
created if there is none. The checkpoint is in the folder samclip/. Of the files
there, those of an earlier push are replaced or deleted, and the others stay; so
does a README.md that a person has written or changed. A repository of another
model is refused. The token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT
names another hub.""",
        epilog="""examples:
  samclip push edge ann/samclip-edge --private
  samclip push runs/vit-b ann/samclip-vit-b""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.add_argument("checkpoint", help="bundled name or directory")
    made.add_argument("repository", metavar="OWNER/NAME")
    made.add_argument("--private", action="store_true", help="if the repository is created")
    return made


def push(directory: Path, repository: str, private: bool = False) -> str:
    """Upload a checkpoint and its page as one commit, and return the repository's address.

    The files of the repository's former manifest are deleted unless they are replaced. Raises
    CheckpointError if a file is damaged, or the manifest in the repository, or if another model is
    there, and the hub's errors.
    """
    checkpoint.settle(directory)
    checkpoint.verify(directory)
    identity = checkpoint.shown(checkpoint.identity(directory), 64)
    api = HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    there = set(api.list_repo_files(repository))
    former, edited = _former_files(repository, there)
    files: dict[str, Path | bytes] = _page(directory, repository)
    files |= {hub.PLACE + name: directory / name for name in checkpoint.file_names(directory)}
    if edited:
        del files[checkpoint.CARD]
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    deleted = [CommitOperationDelete(name) for name in sorted(former & there - files.keys())]
    api.create_commit(
        repository, [*added, *deleted], commit_message=f"samclip push: digest {identity}"
    )
    return str(address)


def _page(directory: Path, repository: str) -> dict[str, Path | bytes]:
    """Return the files at the repository's root: the page, and a config that says whose it is."""
    text = card.page(directory, repository).encode()
    config = {"model_type": _TYPE, _CARD_KEY: hashlib.sha256(text).hexdigest()}
    return {checkpoint.CARD: text, checkpoint.CONFIG: json.dumps(config, indent=2).encode()}


def _former_files(repository: str, there: set[str]) -> tuple[set[str], bool]:
    """Return the files of the checkpoint in a repository, and whether a person wrote its card."""
    listed = hub.PLACE + checkpoint.MANIFEST
    names = [listed, checkpoint.CONFIG, checkpoint.CARD]
    if not there.intersection(names):
        return set(), False
    with TemporaryDirectory() as scratch:
        root = hub.download(repository, names, manifest.MAX_BYTES, local_dir=scratch)
        files = checkpoint.file_names(root / hub.PLACE) if listed in there else ()
        former = {hub.PLACE + name for name in files}
        if checkpoint.CONFIG in there and _config(root).get("model_type") != _TYPE:
            raise CheckpointError(
                f"{repository} has a {checkpoint.CONFIG} of another model, which this push would "
                "replace: choose another repository"
            )
        if checkpoint.CARD not in there:
            return former, False
        return former, _config(root).get(_CARD_KEY) != checkpoint.sha256(root / checkpoint.CARD)


def _config(root: Path) -> dict[str, Any]:
    """Return the config at the root of a repository; empty if it has none that can be read."""
    with suppress(OSError, ValueError):
        found = guarded.read_json(root / checkpoint.CONFIG)
        return found if isinstance(found, dict) else {}
    return {}
