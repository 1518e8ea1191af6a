"""Exported graphs against the torch engine: in batches, and in each runtime of the CPU engine.

The tolerance is 1e-3 of the largest value of an output, because random weights give outputs of
any scale.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from skimage import data

from samclip_core.answers.evidence import BESIDE
from samclip_core.commands import export
from samclip_core.config import TaskSizes
from samclip_core.engine import graphs, quantise
from samclip_core.engine.base import Encoded, Engine, PromptBatch
from samclip_core.engine.compiled import CompiledEngine
from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.errors import CheckpointError, InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.text_encoder import load_text_encoder
from samclip_core.nn.tokenizer import load as load_tokenizer
from tests.clip_models import PE_CORE, write_clip
from tests.converted import make_pair
from tests.official import small_sam, write
from tests.parity.comparison import assert_near
from tests.photographs import draw, png
from tests.tiny import make_tiny_checkpoint

SIDE = 128  # of the model frame
SIDES = TaskSizes(classify=64, semantic=64, retrieval=64)  # of the kind vit-b
GRAPHS = ("image_encoder.onnx", "mask_decoder.onnx", "text_encoder.onnx")
# Valid (height, width) of the pictures of a batch.
SIZES = {
    "square": [(SIDE, SIDE)],
    "wide": [(50, SIDE)],
    "high": [(SIDE, 100)],
    "one pixel": [(1, 1)],
    "three": [(SIDE, 43), (30, 70), (64, SIDE)],
}
LAYOUTS: dict[str, list[int]] = {  # point labels of a prompt
    "point": [1, -1],
    "negative points": [1, 0, 0, -1],
    "box": [2, 3],
    "box and points": [1, 0, 2, 3],
    "mask": [],
    "point and mask": [1, -1],
    "box and mask": [2, 3],
}
TEXTS = ["a photo of the dog", "cat", "the grass of the dog " * 40]


class Batches:
    """An engine that runs the graphs in batches, in onnxruntime."""

    def __init__(self, directory: Path) -> None:
        self.encoder, self.decoder, self.text = (
            onnxruntime.InferenceSession(directory / name, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        )

    def encode(self, pixels_B3SS: NDArray[np.uint8], sizes_B2: NDArray[np.int64]) -> Encoded:
        return Encoded(*self.encoder.run(None, {"pixels": pixels_B3SS, "sizes": sizes_B2}))

    def decode(self, sam_BDhw: NDArray, prompts: PromptBatch) -> tuple[NDArray, ...]:
        names = ("image", "points", "labels", "masks", "has_mask")
        inputs = {"sam": sam_BDhw.astype(np.float32), **dict(zip(names, prompts, strict=True))}
        return tuple(self.decoder.run(None, inputs))

    def embed_text(self, ids_TN: NDArray[np.int64]) -> NDArray:
        return np.asarray(self.text.run(None, {"ids": ids_TN})[0])


class Exported(NamedTuple):
    directory: Path
    digest: str  # before the export
    output: str
    torch: TorchEngine


@pytest.fixture(scope="module")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Return a function that exports a small checkpoint of a kind once."""
    return cache(lambda kind: _exported(kind, tmp_path_factory.mktemp(kind)))


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("vit-b", "pair", "mobile")]


@pytest.fixture(scope="module", params=["edge", *SLOW])
def exported(request: pytest.FixtureRequest, export_once: Callable[[str], Exported]) -> Exported:
    return export_once(request.param)


def _exported(kind: str, root: Path) -> Exported:
    """Export a checkpoint with float16 matrices, or in float32 if it is of SAM's encoder.

    ``pair`` and ``rotary``, with PE-Core's words, have SAM's encoder, ``mobile`` MobileSAM's.
    """
    directory = root / "checkpoint"
    if kind == "rotary":
        write_clip(root / "clip", PE_CORE)
    if kind in ("pair", "rotary"):
        make_pair(write(small_sam(SIDE, 32), root, "sam.pth"), directory)
    else:
        sizes = SIDES if kind == "vit-b" else None
        make_tiny_checkpoint(directory, "pair" if kind == "mobile" else kind, task_sizes=sizes)
    digest, output = checkpoint.digest(directory), io.StringIO()
    arguments = [str(directory)]
    if kind in ("vit-b", "mobile"):
        (root / "photographs").mkdir()
        for seed in range(3):
            (root / f"photographs/{seed}.png").write_bytes(png(draw(seed).image_HW3))
        arguments += ["--calibrate", str(root / "photographs")]
    with redirect_stdout(output), redirect_stderr(output):
        assert export.main(arguments) == 0
    torch = TorchEngine.load(directory, "cpu", "float32")
    return Exported(directory, digest, output.getvalue(), torch)


@pytest.fixture(scope="module", params=["batches", "onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, exported: Exported) -> Batches | Engine:
    if request.param == "batches":
        return Batches(exported.directory)
    return CompiledEngine(exported.directory, "float32", runtime=request.param)


assert_close = partial(assert_near, atol=1e-3)


def pictures(
    sizes: list[tuple[int, int]], side: int = SIDE
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return frames of noise, including their padding, and their valid sizes."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(sizes), 3, side, side), np.uint8)
    return pixels, np.array(sizes, np.int64)


def prompts(layout: str, count: int, images: int, grid: int) -> PromptBatch:
    random, labels = np.random.default_rng(1), LAYOUTS[layout]
    masks = np.zeros((count, 1, 4 * grid, 4 * grid), np.float32)
    if "mask" in layout:
        masks[:] = random.normal(0, 5, masks.shape)
    return PromptBatch(
        np.arange(count) % images,
        np.sort(random.uniform(0, SIDE, (count, len(labels), 2)).astype(np.float32), axis=1),
        np.array([labels] * count, np.int64).reshape(count, -1),
        masks,
        np.full(count, "mask" in layout, np.float32),
    )


@pytest.mark.parametrize("sizes", SIZES)
def test_image_encoder(exported: Exported, engine: Engine, sizes: str) -> None:
    given = pictures(SIZES[sizes])
    encoded = engine.encode(*given)[:3], exported.torch.encode(*given)[:3]
    for found, expected in zip(*encoded, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_decoder(exported: Exported, engine: Engine, layout: str, count: int) -> None:
    sam = exported.torch.encode(*pictures(SIZES["three"])).sam_BDhw.astype(np.float16)
    asked = prompts(layout, count, len(sam), sam.shape[-1])
    for found, expected in zip(
        engine.decode(sam, asked), exported.torch.decode(sam, asked), strict=True
    ):
        assert_close(found, expected)


@pytest.mark.parametrize("count", [1, 3])
def test_text_encoder(exported: Exported, engine: Engine, count: int) -> None:
    ids_TN = load_tokenizer(exported.directory)(TEXTS[:count])
    assert_close(engine.embed_text(ids_TN), exported.torch.embed_text(ids_TN))


def test_tokens_are_those_of_the_text_encoder(exported: Exported) -> None:
    theirs = load_text_encoder(exported.directory).tokenizer
    np.testing.assert_array_equal(load_tokenizer(exported.directory)(TEXTS), theirs(TEXTS))


def test_weights_are_those_of_the_safetensors_files(exported: Exported) -> None:
    """The graphs store no weights themselves, except small constants computed at the export."""
    kinds = set[int]()
    for name in GRAPHS:
        path = exported.directory / name
        graph = onnx.load(path, load_external_data=False).graph
        windows = (t for t in graph.initializer if t.name.endswith(".attention_bias_idxs"))
        assert path.stat().st_size - sum(8 * np.prod(tensor.dims) for tensor in windows) < 1e6
        for tensor in graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                few = np.prod(tensor.dims) <= 2 * graphs.LARGEST_CONSTANT
                in_no_file = tensor.name.endswith((".attn_mask", ".attention_bias_idxs"))
                assert few or in_no_file, tensor.name
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            held = stored(exported.directory / place["location"])
            assert held[int(place["offset"])] == int(place["length"]), tensor.name
            kinds.add(tensor.data_type)
    half = checkpoint.read_config(exported.directory).name != "pair"  # as convert names it
    assert kinds == ({TensorProto.FLOAT, TensorProto.FLOAT16} if half else {TensorProto.FLOAT})


def stored(path: Path) -> dict[int, int]:
    """Return offset → length of the tensors in a safetensors file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    offsets = (about["data_offsets"] for about in header.values())
    return {start + first: end - first for first, end in offsets}


def test_the_digest_of_the_weights_stays_and_each_graph_has_a_line(exported: Exported) -> None:
    output = exported.output.splitlines()
    assert all(any(line.startswith(f"{name}: ") for line in output) for name in GRAPHS)
    assert checkpoint.digest(exported.directory) == exported.digest
    assert checkpoint.graphs_digest(exported.directory)[:12] in exported.output
    checkpoint.verify(exported.directory)


@pytest.mark.slow
def test_an_export_that_fails_leaves_the_checkpoint_as_it_was(
    export_once: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(export_once("vit-b").directory, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def interrupted(net, text_encoder, config, samples):
        yield "image_encoder.onnx", graphs.image_encoder(net, config.image_size)
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_graphs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.export(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.slow
def test_int8_that_differs_too_much_is_refused_and_changes_nothing(
    export_once: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    exact = export_once("vit-b").directory
    copy = shutil.copytree(exact, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    fine = quantise._map_scale

    def coarse(range_: object) -> tuple[NDArray, NDArray]:
        step, zero = fine(range_)
        return np.float32(64 * step), np.uint8(zero / 64)

    monkeypatch.setattr(quantise, "_map_scale", coarse)
    assert export.main([str(copy), "--calibrate", str(exact.parent / "photographs")]) == 1
    assert "int8.onnx differs too much from float32: cosine" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.slow
def test_a_tower_with_rotary_positions_sees_the_same(export_once, runtime) -> None:
    exported = export_once("rotary")
    graph = CompiledEngine(exported.directory, "float32", ("image_encoder",), runtime=runtime)
    given = pictures(SIZES["three"])
    encoded = graph.encode(*given)[:3], exported.torch.encode(*given)[:3]
    for found, expected in zip(*encoded, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.slow
def test_the_side_of_a_task_has_a_graph_of_its_own(export_once, tmp_path: Path, runtime) -> None:
    exported = export_once("vit-b")
    load = partial(
        CompiledEngine, exported.directory, "float32", ("image_encoder",), tmp_path, runtime=runtime
    )
    given = pictures([(64, 32)], 64)
    expected = exported.torch.encode(*given)
    for _ in ("compiled", "read from the disk"):
        found = load().encode(*given)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs)
    with pytest.raises(InvalidRequest, match=r"frames of 128, 64 pixels, not 160.*'torch'"):
        load().encode(*pictures([], 160))


@pytest.mark.parametrize("side", [SIDE, 64])
@pytest.mark.slow
def test_a_vision_transformer_runs_in_int8_or_is_refused_without_its_instructions(
    export_once: Callable[[str], Exported], side
) -> None:
    exported = export_once("vit-b")
    try:
        int8 = CompiledEngine(exported.directory, "int8", ("image_encoder",))
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = ""
    if "ONEDNN_MAX_CPU_ISA" in os.environ or "vnni" not in Path("/proc/cpuinfo").read_text():
        assert not refusal or "cannot be served as int8 on this CPU" in refusal
    else:
        assert not refusal
    if refusal:
        return
    given = pictures([(side, side)], side)
    encoded = int8.encode(*given)[:3], exported.torch.encode(*given)[:3]
    for found, expected in zip(*encoded, strict=True):
        cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
        assert cosine > 0.97


@pytest.mark.parametrize(
    ("picture", "runtime"), [("astronaut", "onnxruntime"), ("coffee", "openvino")]
)
def test_the_bundled_graphs_are_those_of_the_bundled_weights(picture: str, runtime) -> None:
    directory = checkpoint.resolve("edge")
    image_HW3 = getattr(data, picture)()
    geometry = Geometry(*image_HW3.shape[:2], checkpoint.read_config(directory).image_size)
    size = geometry.input_height, geometry.input_width
    given = geometry.resize(image_HW3)[None], np.array([size], np.int64)
    reference = TorchEngine.load(directory, "cpu", "float32")
    compiled = CompiledEngine(directory, "float32", runtime=runtime)
    encoded = reference.encode(*given)
    for found, expected in zip(compiled.encode(*given)[:3], encoded[:3], strict=True):
        assert_close(found, expected)
    sam = encoded.sam_BDhw.astype(np.float16)
    for layout in LAYOUTS:
        asked = prompts(layout, 2, 1, sam.shape[-1])
        for found, expected in zip(
            compiled.decode(sam, asked), reference.decode(sam, asked), strict=True
        ):
            assert_close(found, expected)
    ids_TN = load_tokenizer(directory)(TEXTS)
    assert_close(compiled.embed_text(ids_TN), reference.embed_text(ids_TN))


def test_command_line_says_what_is_wrong(tmp_path: Path, tiny_checkpoint, capsys, monkeypatch):
    def error_of(*arguments: object) -> str:
        assert export.main([str(argument) for argument in arguments]) == 1
        return str(capsys.readouterr().err)

    assert "samclip export: no checkpoint" in error_of(tmp_path / "none")
    assert "contains no photographs" in error_of(tiny_checkpoint, "--calibrate", tmp_path)
    (tmp_path / "a.png").write_bytes(png(draw(0).image_HW3))
    monkeypatch.setattr(export, "LARGEST_IN_GRAPH", 1000)
    assert "GB: export without photographs" in error_of(tiny_checkpoint, "--calibrate", tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert f"{tmp_path}/b.png: " in error_of(tiny_checkpoint, "--calibrate", tmp_path)
    monkeypatch.setattr(export, "export", lambda *_: (tmp_path / "none/x").write_text(""))
    assert "No such file" in error_of(tiny_checkpoint)


def test_the_words_beside_every_text_are_kept_and_embedded_no_more(exported: Exported) -> None:
    model = SamClip.load(exported.directory, dtype="float32")
    alone = SamClip.load(exported.directory, dtype="float32", engine="torch")
    alone._beside = {}
    calls = list[int]()
    embed = model.engine.embed_text
    model.engine.embed_text = lambda ids_TN: calls.append(len(ids_TN)) or embed(ids_TN)
    text_ND = model.embed_labels(["a cup", *BESIDE])
    assert calls == [len(model.config.templates)]
    assert_close(text_ND, alone.embed_labels(["a cup", *BESIDE]))
