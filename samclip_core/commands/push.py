"""``samclip push``: publish a checkpoint on the Hugging Face hub."""

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.errors import CheckpointError, plain
from samclip_core.io import checkpoint, hub


def main(argv: Sequence[str] | None = None) -> int:
    """Upload a checkpoint; print its address and digest; return the exit code."""
    args = parser().parse_args(argv)
    try:
        directory = checkpoint.resolve(args.checkpoint)
        address = push(directory, args.repository, args.private)
    except (CheckpointError, HfHubHTTPError, HFValidationError, OSError) as error:
        print(plain(f"samclip push: {error}"), file=sys.stderr)
        return 1
    print(f"{address}\ndigest {checkpoint.shown(checkpoint.identity(directory), 64)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    made = argparse.ArgumentParser(
        prog="samclip push",
        description="""Publish a checkpoint as a model repository on the Hugging Face hub, which is
created if there is none. Of the files there, those of a checkpoint that was
pushed before are replaced or deleted, and the others stay. The token is that of
`hf auth login` or HF_TOKEN; HF_ENDPOINT names another hub.""",
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
    """Upload the files of the manifest as one commit and return the repository's address.

    The files of the repository's former manifest are deleted unless they are replaced. Raises
    CheckpointError if a file is damaged, or the manifest in the repository, and the hub's errors.
    """
    checkpoint.verify(directory)
    identity = checkpoint.shown(checkpoint.identity(directory), 64)
    api = HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository,
        folder_path=directory,
        commit_message=f"samclip push: digest {identity}",
        allow_patterns=[glob.escape(name) for name in checkpoint.file_names(directory)],
        delete_patterns=[glob.escape(name) for name in _former_files(repository)],
    )
    return str(address)


def _former_files(repository: str) -> list[str]:
    """Return the files of the checkpoint in a repository; none if it has no manifest."""
    with TemporaryDirectory() as scratch:
        names = [checkpoint.MANIFEST]
        directory = hub.download(repository, names, hub.MAX_MANIFEST_BYTES, local_dir=scratch)
        found = (directory / checkpoint.MANIFEST).is_file()
        return checkpoint.file_names(directory) if found else []
