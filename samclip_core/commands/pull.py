"""``samclip pull``: make a checkpoint of a published model, or fetch one from the hub."""

import argparse
import hashlib
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.commands import conversion, environment, measured
from samclip_core.commands.conversion import say
from samclip_core.commands.models import MODELS
from samclip_core.errors import CheckpointError, plain
from samclip_core.families import published
from samclip_core.families.published import Published
from samclip_core.io import checkpoint, hub, sources
from samclip_core.io.files import locked

YES = "install what converting lacks without asking, for a while"
"""The help of --yes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make or download a checkpoint; print its directory and digest; return the exit code."""
    args = parser().parse_args(argv)
    name, _, revision = args.name.removeprefix("hf://").partition("@")
    revision = args.revision or revision or None
    model = MODELS.get(name) or _of_repository(name)
    try:
        _check_name(name, model, revision)
        if model:
            out = make(model, args.out, args.yes)
        else:
            out = pull(name, args.out or Path(name.rpartition("/")[2]), revision)
    except CheckpointError as error:
        print(f"samclip pull: {said(error)}", file=sys.stderr)
        return 1
    except hub.errors() as error:
        print(plain(f"samclip pull: {name}: {hub.reason(error)}"), file=sys.stderr)
        return 1
    print(f"{out}\ndigest {checkpoint.shown(checkpoint.identity(out), 64)}")
    is_found = model and checkpoint.found(model.name) == out.resolve()
    where = model.name if model and is_found else out
    say(f"Serve it: samclip serve --checkpoint {where}")
    config = checkpoint.read_config(out)
    if config.masks and config.uncalibrated:
        say(
            "Scores of texts only rank until they are fitted to photographs of named things:\n"
            f"  samclip calibrate {where} --data SET\n"
            f"  samclip eval --checkpoint {where} --suite words --root SETS"
        )
    return 0


def _check_name(name: str, model: Published | None, revision: str | None) -> None:
    if model is None and name.count("/") != 1:
        raise CheckpointError(
            f"{name!r} is neither a published model ({', '.join(MODELS)}) nor OWNER/NAME of the hub"
        )
    if model and revision:
        raise CheckpointError(
            f"{model.name} has its own revisions: leave {revision!r} out, or convert other files "
            "with `samclip convert`"
        )


def _obtained(model: Published) -> Published:
    """Download missing files. Raises CheckpointError, with all that can be copied by hand."""
    try:
        return replace(
            model,
            radio=model.radio and sources.obtain(model.radio),
            sam=sources.obtain(model.sam),
            clip=sources.obtain(model.clip),
        )
    except CheckpointError as error:
        files = [f"  {sources.about(one, name)}" for one in model.sources for name in one.missing]
        if not files:
            raise
        for one in model.sources:
            one.folder.mkdir(parents=True, exist_ok=True)
        head = "Without a network, copy these files here and run the command again:"
        error.add_note("\n".join([head, *files]))
        raise


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip pull",
        description="""Make a checkpoint of a published model: download its files, check their
digests, convert them, and export graphs for CPUs; without PyTorch, in a
temporary environment that has it. Or fetch a checkpoint that `samclip push` has
published on the Hugging Face hub, and check every file against its digest. An
interrupted download resumes. The token, for private repositories, is that of
`hf auth login` or HF_TOKEN; HF_ENDPOINT names another hub.""",
        epilog="""examples:
  samclip models
  samclip pull mobile --yes
  samclip pull ann/samclip-edge --revision v2 --out edge-v2/""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.add_argument(
        "name", metavar="NAME", help="model of `samclip models`, or OWNER/NAME of the hub"
    )
    made.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub (main)")
    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"new directory (for OWNER/NAME: NAME; else below {checkpoint.PULLED}, where commands "
        "find the model by its name)",
    )
    made.add_argument("--yes", action="store_true", help=YES)
    return made


def said(error: Exception) -> str:
    """Return the lines of an error for people."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def ensure(name: str, yes: bool) -> None:
    """Make a published model, if ``name`` is one and none is here. Raises as ``make``."""
    if name in MODELS and checkpoint.found(name) is None:
        make(MODELS[name], None, yes)


def make(model: Published, out: Path | None, yes: bool) -> Path:
    """Download and convert a published model to a new directory; return it.

    Without ``out``, commands find it by the model's name, and nothing is done if they do already.
    Progress goes to standard error. ``out`` appears once everything is done, and downloads are
    kept. Raises CheckpointError if ``out`` exists, if nobody agrees to install what is
    missing, and as ``sources.obtain`` does.
    """
    place = out or checkpoint.PULLED.expanduser() / model.name

    def is_made() -> bool:
        if out is None and checkpoint.is_here(place):
            return True
        _check_new(place)
        return False

    if is_made():
        return place
    say(f"{model.name}: about {model.gigabytes} GB; {'; '.join(model.licences)}")
    lacking = environment.lacking()
    if lacking and not yes:
        _agree()
    for folder in (published.FOLDER.expanduser(), place.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(published.FOLDER.expanduser()):
        if is_made():  # by the other one
            return place
        model, partial = _obtained(model), place.with_name(f".{place.name}.pull")
        try:
            _convert(model, partial, lacking)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    say("measuring …")
    say(measured.measure(place))
    return place


def _agree() -> None:
    """Ask whether packages may be installed for a while. Raises CheckpointError if not."""
    about = (
        f"converting needs PyTorch: a temporary environment of {environment.GIGABYTES} GB in "
        f"{environment.FOLDER}, which is removed afterwards"
    )
    if not sys.stdin.isatty():
        raise CheckpointError(f"{about}. Without a terminal to ask at, pass --yes")
    print(f"{about}. Type yes: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() not in ("y", "yes"):
        raise CheckpointError("nothing was downloaded or installed: the answer is not 'yes'")


def _convert(model: Published, out: Path, lacking: Sequence[str]) -> None:
    if not lacking:
        conversion.convert(model, out)
        return
    say(f"installing {', '.join(lacking)} for the conversion …")
    with environment.made(lacking) as python:
        conversion.convert_with(python, model, out)


def _of_repository(name: str) -> Published | None:
    """Return the model whose encoder a repository of the hub publishes; None if there is none."""
    for model in MODELS.values():
        if model.radio and model.radio.address.removeprefix("hf://").partition("@")[0] == name:
            return model
    return None


def _check_new(out: Path) -> None:
    if out.exists():
        serve = f"serve what is there with `samclip serve --checkpoint {out}`"
        other = serve if checkpoint.is_here(out) else "remove it, which has no checkpoint"
        raise CheckpointError(f"{out} exists: choose a new directory with --out, or {other}")


def pull(repository: str, out: Path, revision: str | None = None) -> Path:
    """Download the files of a repository's manifest into a new directory; return it.

    Nothing is at ``out`` until every file is whole. Raises CheckpointError if ``out`` exists, if
    the repository has no checkpoint or if a file differs from its digest, and the hub's errors.
    """
    _check_new(out)
    origin = hashlib.sha256(f"{repository}@{revision}".encode()).hexdigest()[:12]
    partial = out.with_name(f".{out.name}.{origin}.pull")  # never another repository's files
    partial.mkdir(parents=True, exist_ok=True)
    with _alone(partial):
        _check_new(out)  # the other one may have made it
        return _pulled(repository, out, partial, revision)


def _alone(folder: Path) -> AbstractContextManager[object]:
    """Wait until no other pull uses a folder."""
    return locked(folder, lambda: say("waiting for another download …"))


def _pulled(repository: str, out: Path, partial: Path, revision: str | None) -> Path:
    where: dict[str, Any] = {"revision": revision, "local_dir": partial}
    directory = hub.download_manifest(repository, **where)
    names = [hub.PLACE + name for name in checkpoint.file_names(directory)]
    hub.download(repository, names, **where)
    checkpoint.verify(directory)
    whole = partial / ".whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for name in names:  # and nothing that an interrupted download has left
        (partial / name).rename(whole / Path(name).name)
    whole.rename(out)
    shutil.rmtree(partial, ignore_errors=True)
    return out
