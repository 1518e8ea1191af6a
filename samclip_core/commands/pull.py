"""``samclip pull``: make a checkpoint of a published model, or fetch one from the hub."""

import argparse
import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.commands import measured
from samclip_core.commands.models import MODELS, Published
from samclip_core.errors import CheckpointError, plain
from samclip_core.io import checkpoint, hub, sources


def main(argv: Sequence[str] | None = None) -> int:
    """Make or download a checkpoint; print its directory and digest; return the exit code."""
    args = parser().parse_args(argv)
    name, _, revision = args.name.removeprefix("hf://").partition("@")
    revision = args.revision or revision or None
    model = MODELS.get(name) or _of_repository(name)
    out = args.out or Path(model.name if model else name.rpartition("/")[2])
    try:
        _check_installed(model)
        _check_name(name, model, revision)
        digest = make(model, out) if model else pull(name, out, revision)
    except CheckpointError as error:
        print(plain(f"samclip pull: {error}"), file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            say(note)
        return 1
    except hub.errors() as error:
        print(plain(f"samclip pull: {name}: {hub.reason(error)}"), file=sys.stderr)
        return 1
    print(f"{out}\ndigest {digest}")
    say(f"Serve it: samclip serve --checkpoint {out}")
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
    """Download missing files. Raises CheckpointError, with a note on the files to copy by hand."""
    try:
        return replace(
            model,
            radio=model.radio and sources.obtain(model.radio),
            sam=sources.obtain(model.sam),
            clip=sources.obtain(model.clip),
        )
    except CheckpointError as error:
        files = [(one, name) for one in model.sources for name in one.missing]
        for one, _ in files:
            one.folder.mkdir(parents=True, exist_ok=True)
        places = [f"  {one.url(name)}\n    to {one.folder / name}" for one, name in files]
        if files:
            head = "Without a network, copy these files here and run the command again:"
            error.add_note("\n".join([head, *places]))
        raise


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip pull",
        description="""Make a checkpoint of a published model: download its files, check their
digests, convert them, and export graphs for CPUs. Or fetch a checkpoint that
`samclip push` has published on the Hugging Face hub, and check every file
against its digest. An interrupted download from the hub resumes. The token, for
private repositories, is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names
another hub.""",
        epilog="""examples:
  samclip models
  samclip pull mobile
  samclip pull ann/samclip-edge --revision v2 --out edge-v2/""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.add_argument(
        "name", metavar="NAME", help="model of `samclip models`, or OWNER/NAME of the hub"
    )
    made.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub (main)")
    made.add_argument("--out", type=Path, metavar="DIR", help="new directory (NAME)")
    return made


def make(model: Published, out: Path) -> str:
    """Download and convert a published model to a new directory; return its identity.

    Reports each step on standard error. Nothing is at ``out`` until all is done. Raises
    CheckpointError if ``out`` exists, if a package is missing, and as ``sources.obtain`` does.
    """
    _check_new(out)
    say(f"{model.name}: {'; '.join(model.licences)}")
    model = _obtained(model)
    say("converting …")
    partial = out.with_name(f".{out.name}.pull")
    _convert(model, partial)
    if find_spec("onnx_ir"):
        from samclip_core.commands.export import export

        say("exporting graphs for CPUs, which takes a few minutes …")
        export(partial, progress=say)
    else:
        say(
            f"PyTorch serves it. For graphs, which are faster on a CPU, run pip install -e "
            f"'.[export]' in a clone and samclip export {out}"
        )
    partial.rename(out)
    say("measuring …")
    say(measured.measure(out))
    return checkpoint.shown(checkpoint.identity(out), 64)


def _convert(model: Published, out: Path) -> None:
    sam, clip = _only_file(model.sam), f"local-dir:{model.clip.folder}"
    if model.open_clip:
        clip = f"{model.open_clip}:{_only_file(model.clip)}"
    if model.radio:
        from samclip_core.commands.convert_radio import convert_radio

        radio = _only_file(model.radio)
        convert_radio(radio, sam, clip, out, model.name, published=model.sources)
    else:
        from samclip_core.commands.convert import convert

        convert(sam, clip, out, model.name, published=model.sources)


def _only_file(source: sources.Source) -> Path:
    (name,) = source.files
    return source.folder / name


def _of_repository(name: str) -> Published | None:
    """Return the model whose encoder a repository of the hub publishes; None if there is none."""
    for model in MODELS.values():
        if model.radio and model.radio.address.removeprefix("hf://").partition("@")[0] == name:
            return model
    return None


def _check_installed(model: Published | None) -> None:
    """Raise CheckpointError that names all that is missing, also to convert and serve a model."""
    needed = ("huggingface_hub", "torch") if model else ("huggingface_hub",)
    if missing := [name for name in needed if find_spec(name) is None]:
        raise CheckpointError(
            f"this needs {' and '.join(missing)}, not installed: in a clone, run pip install -e "
            f"'.[{'serve,export,hub' if model else 'hub'}]'"
        )


def _check_new(out: Path) -> None:
    if out.exists():
        raise CheckpointError(
            f"{out} exists: choose a new directory with --out, or serve what is there with "
            f"`samclip serve --checkpoint {out}`"
        )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pull(repository: str, out: Path, revision: str | None = None) -> str:
    """Download the files of a repository's manifest into a new directory; return its identity.

    Nothing is at ``out`` until every file is whole. Raises CheckpointError if ``out`` exists, if
    the repository has no checkpoint or if a file differs from its digest, and the hub's errors.
    """
    _check_new(out)
    origin = hashlib.sha256(f"{repository}@{revision}".encode()).hexdigest()[:12]
    partial = out.with_name(f".{out.name}.{origin}.pull")  # never another repository's files
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
    return checkpoint.shown(checkpoint.identity(out), 64)
