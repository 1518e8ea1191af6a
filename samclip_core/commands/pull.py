"""``samclip pull``: fetch a checkpoint from the Hugging Face hub."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.errors import CheckpointError, plain
from samclip_core.io import checkpoint, hub


def main(argv: Sequence[str] | None = None) -> int:
    """Download a checkpoint and check it; print its directory and digest; return the exit code."""
    args = parser().parse_args(argv)
    out = args.out or Path(args.repository.rpartition("/")[2])
    try:
        digest = pull(args.repository, out, args.revision)
    except (CheckpointError, HfHubHTTPError, HFValidationError, OSError) as error:
        print(plain(f"samclip pull: {error}"), file=sys.stderr)
        return 1
    print(f"{out}\ndigest {digest}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    made = argparse.ArgumentParser(
        prog="samclip pull",
        description="""Fetch a checkpoint from the Hugging Face hub and check every file against its
digest. An interrupted download goes on. The token, for private repositories, is
that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names another hub.""",
        epilog="""examples:
  samclip pull ann/samclip-edge
  samclip pull ann/samclip-edge --revision v2 --out edge-v2/""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.add_argument("repository", metavar="OWNER/NAME")
    made.add_argument("--revision", metavar="REV", help="branch, tag or commit (main)")
    made.add_argument("--out", type=Path, metavar="DIR", help="new directory (NAME)")
    return made


def pull(repository: str, out: Path, revision: str | None = None) -> str:
    """Download the files of a repository's manifest into a new directory; return its identity.

    Nothing is at ``out`` until every file is whole. Raises CheckpointError if ``out`` exists, if
    the repository has no checkpoint or if a file differs from its digest, and the hub's errors.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists: choose a new directory with --out")
    partial = out.with_name(f".{out.name}.pull")
    hub.download_manifest(repository, checkpoint.MANIFEST, revision=revision, local_dir=partial)
    names = checkpoint.file_names(partial)
    hub.download(repository, names, revision=revision, local_dir=partial)
    checkpoint.verify(partial)
    shutil.rmtree(partial / ".cache")  # the hub's records of the download
    partial.rename(out)
    return checkpoint.shown(checkpoint.identity(out), 64)
