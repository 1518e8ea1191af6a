"""``samclip export``: write the networks of a checkpoint as ONNX graphs, also for SAM's tools."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich_argparse import RawDescriptionRichHelpFormatter
from torch import nn

from samclip_core import guarded
from samclip_core.answers import beside
from samclip_core.answers.request import check_sam_layout
from samclip_core.config import SamClipConfig
from samclip_core.engine import graphs, sam_graphs, sam_layout
from samclip_core.engine.choice import OF_TORCH, noise, packed
from samclip_core.engine.int8 import compared, refusal
from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.errors import CheckpointError, SamClipError
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.io.files import replacing
from samclip_core.io.image import SUFFIXES, ImageLimits, decode
from samclip_core.nn.network import SAM_PARTS, SamClipNet, load_net
from samclip_core.nn.text_encoder import TextEncoder, load_text_encoder

LARGEST_IN_GRAPH = 2**31
"""Bytes of float weights in a file of ONNX, which is protobuf's limit."""
SAMPLES = 300
"""Maximum number of photographs for calibration; a few hundred are enough."""
Samples = Mapping[int, Sequence[Mapping[str, NDArray]]]
"""For each side of the frame, ``pixels`` and ``sizes`` of the photographs for calibration."""


def export(
    directory: Path,
    samples: Samples = MappingProxyType({}),
    progress: Callable[[str], object] = lambda _: None,
) -> str:
    """Write the graphs of a checkpoint into its directory; return their digest.

    ``samples`` add int8 graphs of the image encoder, which has one graph per side of the frame
    (``SamClipConfig.sizes``). ``progress`` receives one line per graph. Raises CheckpointError if
    the checkpoint is damaged, or if int8 differs too much from float32; it is then as before.
    """
    config = checkpoint.read_config(directory)
    text_encoder = load_text_encoder(directory)
    about: dict[str, dict[str, Any]] = {}
    started = [checkpoint.CLIP_TOKENIZER, checkpoint.BESIDE]
    try:
        net = load_net(directory)
        for name, model in _graphs(net, text_encoder, config, samples):
            started.append(name)
            graphs.refer_to_weights(model, directory)
            ir.save(model, _unfinished(directory, name))
            about[name] = graphs.describe(model)
            if name == "image_encoder.onnx":
                encoded = TorchEngine(net, None).encode(*noise(config.image_size))
                about[name][OF_TORCH] = packed([one for one in encoded if one is not None])
            progress(f"{name}: {len(model.graph)} nodes")
        if text_encoder.tokenizer_json is None:  # not part of the checkpoint
            json_path = _unfinished(directory, checkpoint.CLIP_TOKENIZER)
            json_path.write_text(text_encoder.tokenizer.json)
            about[checkpoint.CLIP_TOKENIZER] = {}
        words = _unfinished(directory, checkpoint.BESIDE)
        about[checkpoint.BESIDE] = beside.write(
            words, config, lambda texts: text_encoder.embed(texts).numpy()
        )
        progress(f"{checkpoint.BESIDE}: vectors of words")
        if samples:
            for name, agreed in _int8_agreement(directory, config, samples):
                about[name] |= agreed
                progress(f"{name}: {', '.join(f'{key} {value}' for key, value in agreed.items())}")
        for name in about:
            _unfinished(directory, name).replace(directory / name)
    finally:
        for name in started:
            _unfinished(directory, name).unlink(missing_ok=True)
    if not samples:  # keep the int8 graphs, which were made from the same weights
        before = checkpoint.graphs(directory).items()
        kept = {name: entry for name, entry in before if name.endswith(".int8.onnx")}
        about |= {checkpoint.verified_graph(directory, name).name: kept[name] for name in kept}
    return checkpoint.seal_graphs(directory, graphs.OPSET, about)


def _unfinished(directory: Path, name: str) -> Path:
    return directory / f".{name}"


def _int8_agreement(
    directory: Path, config: SamClipConfig, samples: Samples
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each int8 graph and its agreement with the float graph. Raises CheckpointError."""
    from samclip_core.engine.quantise import exact_session

    masks = exact_session(_unfinished(directory, "mask_decoder.onnx")) if config.masks else None
    for side in config.sizes:
        names = (checkpoint.INT8_GRAPH, "image_encoder.onnx")
        int8, exact = (checkpoint.at_size(name, side, config.image_size) for name in names)
        one, other = (exact_session(_unfinished(directory, name)) for name in (int8, exact))
        decoder = masks if side == config.image_size else None  # the side of prompts
        agreed = compared(one, other, samples[side], decoder, config)
        if reason := refusal(agreed):
            raise CheckpointError(
                f"{int8} differs too much from float32: {reason}. Calibrate with more photographs, "
                "and such as are to be served, or export without --calibrate"
            )
        yield int8, agreed


def _graphs(
    net: SamClipNet,
    text_encoder: TextEncoder,
    config: SamClipConfig,
    samples: Samples,
) -> Iterator[tuple[str, ir.Model]]:
    """Yield file name and graph of each network; the graphs contain their weights."""
    if samples:
        _check_fits(net, "export without photographs")
    for side in config.sizes:
        encoder = graphs.image_encoder(net, side)
        name = checkpoint.at_size("image_encoder.onnx", side, config.image_size)
        if samples:
            from samclip_core.engine.quantise import KEEP_FLOAT, quantise

            keep = "|".join(filter(None, (KEEP_FLOAT, config.family.keep_float)))
            int8 = quantise(ir.to_proto(encoder), samples[side], keep)
            yield name.replace(".onnx", ".int8.onnx"), ir.from_proto(int8)
        yield name, encoder
    if config.masks:
        yield "mask_decoder.onnx", graphs.mask_decoder(net, config)
    yield "text_encoder.onnx", graphs.text_encoder(text_encoder, config)


def _check_fits(module: nn.Module, remedy: str) -> None:
    weights = sum(4 * parameter.numel() for parameter in module.parameters())
    if weights >= LARGEST_IN_GRAPH:
        raise CheckpointError(
            f"the float weights have {weights / 1e9:.1f} GB, and a graph holds less than "
            f"{LARGEST_IN_GRAPH / 1e9:.1f} GB: {remedy}"
        )


def export_sam(directory: Path, out: Path) -> list[Path]:
    """Write the mask half of a checkpoint to ``out`` for SAM's tools; return the files.

    They contain their weights. Raises CheckpointError if the checkpoint is damaged or too large,
    and InvalidRequest if it has no masks, or such as SAM's tools cannot read.
    """
    config = checkpoint.read_config(directory)
    check_sam_layout(config)
    if (out / checkpoint.MANIFEST).exists():
        raise CheckpointError(f"{out} is a checkpoint: choose another folder for --out")
    net = load_net(directory, SAM_PARTS)
    _check_fits(net, "convert a smaller SAM, or let `samclip serve` answer the tool")
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "encoder.onnx", out / "decoder.onnx"]
    with replacing(files[0]) as partial:
        ir.save(sam_graphs.encoder(net, config), partial)
    graph = ir.to_proto(graphs.mask_decoder(net, config)).SerializeToString()
    with replacing(files[1]) as partial:
        partial.write_bytes(sam_layout.around(graph, config))
    return files


def main(argv: Sequence[str] | None = None) -> int:
    options = parser()
    args = options.parse_args(argv)
    if bool(args.layout) != bool(args.out) or (args.layout and args.calibrate):
        options.error("--layout needs --out, and neither goes with --calibrate")
    try:
        directory = checkpoint.resolve(args.checkpoint)
        if args.layout:
            print(*export_sam(directory, args.out), sep="\n")
            return 0
        samples = calibration(directory, args.calibrate) if args.calibrate else {}
        digest = export(directory, samples, partial(print, file=sys.stderr, flush=True))
    except (SamClipError, OSError, ValueError) as error:
        print(f"samclip export: {error}", file=sys.stderr)
        return 1
    print(f"{directory}: graphs {digest}")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip export",
        description="""Write the networks of a checkpoint as ONNX graphs into its directory,
the image encoder once for each side of the frame in its config. A CPU then
serves them faster, and without PyTorch. The weights are not copied. The
checkpoint's digest does not change, but that of its graphs does: cached
embeddings are then computed again, and collections that other graphs made must
be indexed again (samclip reindex). Takes about a minute, with a slow text
encoder several. An int8 encoder that
differs too much from float32 on the photographs is refused.

With --layout sam, write the mask half alone to another folder instead, as the
two files that tools for SAM read: encoder.onnx, as samexporter makes it
(input_image: RGB, H×W×3, 0 to 255, of any size), and decoder.onnx, as
segment_anything's own script makes it, with the best mask of a prompt. They
contain their weights. Points are in a frame of 1024 pixels, as these tools
assume, whatever the checkpoint's own frame is.""",
        epilog="""examples:
  samclip export pair/
  samclip export pair/ --calibrate photos/
  samclip export pair/ --layout sam --out pair-sam/""",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.add_argument("checkpoint", metavar="CHECKPOINT", help="bundled name or directory")
    made.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="also write an int8 image encoder, calibrated on the photographs in this folder: "
        "a few hundred, similar to those to be served",
    )
    made.add_argument("--layout", choices=["sam"], help="write graphs for other programs to --out")
    made.add_argument("--out", type=Path, metavar="DIR", help="with --layout: folder of the files")
    return made


def calibration(directory: Path, folder: Path) -> Samples:
    """Read up to ``SAMPLES`` evenly chosen photographs of a folder, in frames of each side.

    Raises CheckpointError if there are none, or if one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise CheckpointError(f"{folder} contains no photographs ({', '.join(SUFFIXES)})")
    chosen = paths[:: -(-len(paths) // SAMPLES)]
    config = checkpoint.read_config(directory)
    samples: dict[int, list[dict[str, NDArray]]] = {side: [] for side in config.sizes}
    for path in chosen:
        try:
            image_HW3 = decode(guarded.read(path), ImageLimits())
        except (SamClipError, OSError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        height, width = image_HW3.shape[:2]
        for side in config.sizes:
            geometry = Geometry(height, width, side, config.squash)
            size_12 = np.array([[geometry.input_height, geometry.input_width]], np.int64)
            pixels_13SS = geometry.resize(image_HW3)[None]
            samples[side].append({"pixels": pixels_13SS, "sizes": size_12})
    return samples
