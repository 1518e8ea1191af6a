"""Make a checkpoint of a published model's files, here or by a Python that has PyTorch.

That one runs this module, and reads the model on standard input.
"""

import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from samclip_core.errors import CheckpointError
from samclip_core.families.published import Published, Source


def convert(model: Published, out: Path) -> None:
    """Convert a model's files, and export graphs for CPUs. Raises CheckpointError."""
    say("converting …")
    _convert(model, out)
    if find_spec("onnx_ir"):
        from samclip_core.commands.export import export

        say("exporting graphs for CPUs, which takes a few minutes …")
        export(out, progress=say)
    else:
        say("PyTorch serves it; `samclip export` makes graphs, which are faster on a CPU")


def convert_with(python: Path, model: Published, out: Path) -> None:
    """Do the same in a process of this Python. Raises CheckpointError."""
    # -P: a file in the current directory may have the name of a module.
    command = [str(python), "-P", "-m", __name__, str(out.absolute())]
    if code := subprocess.run(command, input=pickle.dumps(model), stdout=2, check=False).returncode:
        raise CheckpointError(f"{model.name} was not converted (exit code {code}): see above")


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


def _only_file(source: Source) -> Path:
    (name,) = source.files
    return source.folder / name


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        convert(pickle.load(sys.stdin.buffer), Path(sys.argv[1]))
    except (CheckpointError, OSError) as error:
        sys.exit(f"samclip: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
