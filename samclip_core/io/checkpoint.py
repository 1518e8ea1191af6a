"""Checkpoint directories: weights, config, lineage and a digest over all files.

    config.json                 architecture and defaults (``samclip_core.config``)
    model.safetensors           image_encoder.*, clip_head.*, prompt_encoder.*, mask_decoder.*
    text_encoder.safetensors    the frozen text tower
    tokenizer.json              unless the text tower has CLIP's own tokenizer
    lineage.json                teachers, data, stages, metrics, code revision
    README.md                   the model card
    manifest.json               SHA-256 of each file, and the digest over all files

``samclip export`` adds the files to serve on a CPU. They have a separate digest, so that an export
does not change that of the weights; a CPU's answers depend on both (``identity``):

    image_encoder.onnx          including Head_CLIP
    image_encoder.int8.onnx     the same, quantised
    image_encoder.336.onnx      the same for another side of the frame, also as .336.int8.onnx
    mask_decoder.onnx           including the prompt encoder
    text_encoder.onnx
    clip_tokenizer.json         CLIP's own tokenizer, if the text tower has it
    beside.npy                  vectors of the words beside every text (``answers.beside``)

The graphs refer to the weights in the safetensors files. A file is checked against the manifest
when it is read. torch is imported only to load and save tensors.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from samclip_core import guarded
from samclip_core.calibration import Calibration
from samclip_core.config import SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.io import hub, manifest
from samclip_core.io.files import locked, replacing_folder
from samclip_core.io.manifest import file_names as file_names
from samclip_core.io.manifest import rewrite as rewrite
from samclip_core.io.manifest import settle as settle
from samclip_core.io.manifest import sha256 as sha256
from samclip_core.io.manifest import verified as verified
from samclip_core.io.shapes import compare_shapes, fill, shapes_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    M = TypeVar("M", bound=nn.Module)

BUNDLED = Path(__file__).parents[1] / "checkpoints"
PULLED = Path("~/.local/share/samclip/models")
"""The published models that were converted here, by their names."""
DIGITS = 64
"""Characters of a digest."""
CONFIG, LINEAGE, CARD = "config.json", "lineage.json", "README.md"
MANIFEST = manifest.MANIFEST
WEIGHTS, TEXT_WEIGHTS, TOKENIZER = "model.safetensors", "text_encoder.safetensors", "tokenizer.json"
INT8_GRAPH, CLIP_TOKENIZER, BESIDE = "image_encoder.int8.onnx", "clip_tokenizer.json", "beside.npy"


def resolve(name_or_dir: str | Path) -> Path:
    """Return the directory of a checkpoint by its name, the given one, or that of ``hf://…``.

    Raises CheckpointError, which says how to get a checkpoint, if there is none.
    """
    if str(name_or_dir).startswith("hf://"):
        return hub.fetch(str(name_or_dir)).resolve()
    if directory := found(name_or_dir):
        return directory
    bundled = sorted(path.parent.name for path in BUNDLED.glob(f"*/{MANIFEST}"))
    raise CheckpointError(
        f"no checkpoint {str(name_or_dir)!r}: it is neither bundled ({', '.join(bundled) or 'none'}"
        f") nor pulled nor, seen from this folder, a directory with a {MANIFEST}. Make one with "
        "`samclip pull` (a model of `samclip models`), `samclip convert` (other weights) or "
        "`samclip train`"
    )


def found(name_or_dir: str | Path) -> Path | None:
    """Return the directory of a bundled, given or pulled checkpoint; None if there is none."""
    given, pulled = Path(name_or_dir).expanduser(), PULLED.expanduser() / name_or_dir
    # The third one is of a copy of a repository.
    places = BUNDLED / name_or_dir, given, given / hub.PLACE, pulled
    return next((place.resolve() for place in places if is_here(place)), None)


def is_here(directory: Path) -> bool:
    """Return whether a directory has a checkpoint."""
    return (directory / MANIFEST).is_file()


def digest(directory: Path) -> str:
    """Return the checkpoint's identity: the hex SHA-256 over all files, from the manifest.

    A change to any file changes it when the directory is sealed again.
    """
    return manifest.read(directory)[1]


def identity(directory: Path) -> str:
    """Return the digest, followed by that of the graphs if there are any."""
    return digest(directory) + graphs_digest(directory)


def agree(one: str, other: str) -> bool:
    """Return whether two identities may work together: torch, without graphs, may with any."""
    of_torch = DIGITS in (len(one), len(other))
    return one == other or (of_torch and one[:DIGITS] == other[:DIGITS])


def shown(identity: str, digits: int = 12) -> str:
    """Return the first digits of an identity, for people."""
    graphs = identity[DIGITS:]
    return identity[:DIGITS][:digits] + (f" with graphs {graphs[:digits]}" if graphs else "")


def verify(directory: Path) -> None:
    """Check every file except the model card against its digest, and read the config.

    This takes about one second per gigabyte. Raises CheckpointError, which names the file, if one
    is missing or damaged.
    """
    for name in manifest.read(directory)[0]:
        if name != CARD:
            verified(directory, name)
    for name in graphs(directory):
        verified_graph(directory, name)
    read_config(directory)


def read_config(directory: Path) -> SamClipConfig:
    """Read config.json. Raises CheckpointError if it is damaged or of another version."""
    return read_sealed_config(directory)[0]


def read_sealed_config(directory: Path) -> tuple[SamClipConfig, str]:
    """Return the config, and the digest of the checkpoint that it belongs to, of one moment."""
    text, value = manifest.content(directory, CONFIG)
    return SamClipConfig.from_json(text), value


def demonstration(directory: Path) -> bool:
    """Return whether the YAML of the model card, which may be edited, has this tag."""
    with suppress(OSError, ValueError):
        text = guarded.read(directory / CARD).decode("utf-8", "replace")
        before, yaml, *_ = [*text.split("---\n", 2), ""]
        return not before and "- demonstration\n" in yaml
    return False


def read_file(directory: Path, name: str) -> bytes:
    """Return the bytes of a file. Raises CheckpointError if it is missing or damaged."""
    return manifest.content(directory, name)[0]


def read_lineage(directory: Path) -> dict[str, Any]:
    """Return the content of lineage.json. Raises CheckpointError if it is missing or damaged."""
    try:
        return dict(guarded.parsed(read_file(directory, LINEAGE)))
    except (ValueError, TypeError) as error:
        raise manifest.damaged(directory, LINEAGE) from error


def graphs(directory: Path) -> dict[str, Any]:
    """Return the manifest's entries for the exported files, by name; empty before an export."""
    return exported(directory)[1]


def exported(directory: Path) -> tuple[str, dict[str, Any]]:
    """Return ``graphs_digest`` and ``graphs`` of one moment."""
    section = manifest.read_graphs(directory)
    return str(section.get("digest", "")), dict(section.get("files", {}))


def at_size(graph: str, size: int, image_size: int) -> str:
    """Return the name of an image encoder's graph for frames of ``size`` pixels."""
    return graph if size == image_size else graph.replace(".", f".{size}.", 1)


def graphs_digest(directory: Path) -> str:
    """Return the digest over the exported files; empty before an export."""
    return exported(directory)[0]


def verified_graph(directory: Path, name: str, listed: Mapping[str, Any] | None = None) -> Path:
    """Return the path of an exported file that is as ``listed``.

    Raises CheckpointError, which suggests ``samclip export``, if it is missing or damaged.
    """
    entry, path = (listed or graphs(directory)).get(name), directory / name
    if entry is None:
        raise CheckpointError(
            f"{directory} has no {name}, which serving without torch needs: create it with "
            f"`samclip export {directory}`, for which run pip install -e '.[export]' in a clone"
        )
    if not path.is_file() or sha256(path) != entry["sha256"]:
        raise CheckpointError(
            f"{path} is missing or differs from its digest in {MANIFEST}: create it again with "
            f"`samclip export {directory}`, int8 with --calibrate"
        )
    return path


def seal_graphs(directory: Path, opset: int, about: Mapping[str, Mapping[str, Any]]) -> str:
    """Add the exported files and their ``about`` entries to the manifest; return their digest."""
    files = {name: {**entry, "sha256": sha256(directory / name)} for name, entry in about.items()}
    value = manifest.digest_of_graphs(files)
    section = {"digest": value, "opset": opset, "files": files}
    with locked(directory):
        stated, digest_ = manifest.read(directory)
        manifest.write(directory, {"digest": digest_, "files": stated, "graphs": section})
    return value


def load_weights(
    directory: Path,
    make: "Callable[[], M]",
    parts: Iterable[str] = (),
    file: str = WEIGHTS,
    expected: Mapping[str, list[int]] | None = None,
) -> "M":
    """Return a new module with a file's tensors; it keeps its dtypes (float32 as built).

    ``parts`` are the top-level names to load; without any, everything is loaded. ``expected`` are
    the module's shapes, if they are known. Raises CheckpointError, which names the keys, unless
    keys and shapes match exactly: the module takes memory only then. Weights are finite numbers.
    """
    from safetensors import SafetensorError, safe_open

    prefixes = tuple(f"{part}." for part in parts) or ("",)
    shapes = shapes_of(make) if expected is None else expected
    wanted = {key: shape for key, shape in shapes.items() if key.startswith(prefixes)}
    path = verified(directory, file)
    try:
        with safe_open(path, "pt") as stored:
            found = {
                key: list(stored.get_slice(key).get_shape())
                for key in stored.keys()  # noqa: SIM118 - a reader, not a dict
                if key.startswith(prefixes)
            }
            compare_shapes(file, found, wanted, f"the architecture in {CONFIG}")
            module = make()
            fill(file, module, {key: stored.get_tensor(key) for key in found})
            return module
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): convert or train it again"
        ) from error


def save(
    directory: Path,
    net: "nn.Module",
    text_encoder: "nn.Module",
    config: SamClipConfig,
    lineage: Mapping[str, Any],
    *,
    card: str = "",
    half: bool = True,
) -> str:
    """Write a checkpoint atomically and return its digest.

    An existing checkpoint at ``directory`` is replaced; other content is refused. ``half`` stores
    weight matrices as float16; vectors and buffers are small and need the precision of float32.
    Raises CheckpointError for a config that could not be read again.
    """
    SamClipConfig.from_json(config.to_json())
    check_target(directory)
    with replacing_folder(directory) as new:
        (new / CONFIG).write_text(config.to_json())
        (new / LINEAGE).write_text(lineage_text(lineage))
        (new / CARD).write_text(
            card or f"# {config.name}\n\nA SAM-CLIP checkpoint, {config.kind}.\n"
        )
        _write_tensors(new / WEIGHTS, net, half)
        _write_tensors(new / TEXT_WEIGHTS, text_encoder, half)
        tokenizer_json: str | None = getattr(text_encoder, "tokenizer_json", None)
        if tokenizer_json:
            (new / TOKENIZER).write_text(tokenizer_json)
        return seal(new)


def check_target(directory: Path) -> None:
    """Raise CheckpointError if ``directory`` contains anything other than a checkpoint."""
    if directory.exists() and any(directory.iterdir()) and not is_here(directory):
        raise CheckpointError(
            f"{directory} is neither empty nor a checkpoint: choose an empty directory"
        )


def calibrate(directory: Path, calibration: Calibration, about: Mapping[str, Any]) -> str:
    """Write a calibration into the config, and ``about`` it into the lineage; return the digest.

    Both are written or none. Exported graphs do not depend on them, and stay.
    """

    def changed() -> dict[str, str]:
        config = replace(read_config(directory), calibration=calibration)
        lineage = read_lineage(directory) | {"calibration": dict(about)}
        return {CONFIG: config.to_json(), LINEAGE: lineage_text(lineage)}

    return rewrite(directory, changed)


def lineage_text(lineage: Mapping[str, Any]) -> str:
    return json.dumps(lineage, indent=2, sort_keys=True) + "\n"


def seal(directory: Path) -> str:
    """Write manifest.json for the files of ``directory`` except hidden ones; return the new digest.

    Exported graphs are forgotten if the config or the weights have changed.
    """
    derived = (MANIFEST, CLIP_TOKENIZER, BESIDE)  # files that follow from the others, and graphs
    files = {
        path.name: sha256(path)
        for path in directory.iterdir()
        if path.is_file() and path.name not in derived and path.suffix != ".onnx"
        if path.name[0] != "."
    }
    new: dict[str, Any] = {"digest": manifest.digest_of(files), "files": files}
    with suppress(CheckpointError):  # no manifest yet, or a damaged one
        before = manifest.read(directory)[0]
        of_graphs = (CONFIG, WEIGHTS, TEXT_WEIGHTS)
        if all(files.get(name) == before.get(name) for name in of_graphs) and graphs(directory):
            new["graphs"] = manifest.read_graphs(directory)
    manifest.write(directory, new)
    return str(new["digest"])


def _write_tensors(path: Path, module: "nn.Module", half: bool) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    matrices = {name for name, value in module.named_parameters() if value.ndim > 1} if half else ()
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        stored = value.half() if name in matrices else value
        if stored.is_floating_point() and not stored.isfinite().all():
            raise CheckpointError(f"{name} is not finite as {stored.dtype}: nothing was saved")
        tensors[name] = stored.cpu().contiguous().clone()
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    path.chmod(0o644)  # safetensors writes 0600, which other users could not serve
