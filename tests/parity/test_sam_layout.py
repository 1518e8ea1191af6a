"""``samclip export --layout sam``: files that, read as SAM's tools do, answer as the library."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from samclip_core.commands import export
from samclip_core.commands.convert_radio import convert_radio
from samclip_core.engine import sam_layout
from samclip_core.errors import CheckpointError
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests.converted import efficientvit_sam, make_pair
from tests.photographs import draw

SIZES = ((300, 400), (401, 230), (60, 700))  # height and width
TOOL = """
import sys
import numpy as np, onnxruntime
from PIL import Image

FRAME = 1024
folder, side = sys.argv[1], int(sys.argv[2])
encoder, decoder = (
    onnxruntime.InferenceSession(f"{folder}/{part}.onnx") for part in ("encoder", "decoder")
)
given, answers = np.load(f"{folder}/given.npz"), {}
for number in range(len([name for name in given if name.startswith("image")])):
    image = given[f"image{number}"]
    height, width = image.shape[:2]
    fitted = [int(one * side / max(height, width) + 0.5) for one in (height, width)]
    resized = Image.fromarray(image).resize(fitted[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, np.float32)
    (embedding,) = encoder.run(["image_embeddings"], {"input_image": pixels})
    in_frame = [int(one * FRAME / max(height, width) + 0.5) for one in (height, width)]
    scale = np.array([in_frame[1] / width, in_frame[0] / height])
    mask = np.zeros((1, 1, 256, 256), np.float32)  # as X-AnyLabeling sends it, whatever the model
    for prompt in ("click", "clicks", "box", "again"):
        inputs = {
            "image_embeddings": embedding,
            "point_coords": (given[f"{prompt}{number}"] * scale)[None].astype(np.float32),
            "point_labels": given[f"{prompt}{number}/labels"][None].astype(np.float32),
            "mask_input": mask,
            "has_mask_input": np.array([prompt == "again"], np.float32),
            "orig_im_size": np.array([height, width], np.float32),
        }
        masks, iou, mask = decoder.run(["masks", "iou_predictions", "low_res_masks"], inputs)
        answers |= {f"{prompt}{number}": masks[0, 0], f"{prompt}{number}/iou": iou[0, 0]}
np.savez(f"{folder}/answers.npz", **answers)
assert not {"torch", "samclip_core", "segment_anything"} & sys.modules.keys()
"""


KINDS = ("mobile-sam", "efficientvit-sam", "radio")
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module", params=["edge", *SLOW])
def directory(request, tmp_path_factory) -> Path:
    root: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "edge":
        return checkpoint.resolve("edge")
    if request.param == "radio":
        tiny: Path = request.getfixturevalue("radio_tiny")
        text = f"local-dir:{tiny}/text-siglip2-g"
        convert_radio(tiny, tiny / "sam.pth", text, root / "radio", sides=(160, 512))
        return root / "radio"
    sam: Path = request.getfixturevalue("mobile_sam") / "mobile_sam.pth"
    if request.param == "efficientvit-sam":
        data = request.getfixturevalue("efficientvit_sam_tiny").parent
        sam = efficientvit_sam("l0", data, root)
    return make_pair(sam, root / "pair", sides=(512, 512))  # 1024 takes minutes


@pytest.fixture(scope="module")
def files(directory: Path, tmp_path_factory) -> Path:
    out: Path = tmp_path_factory.mktemp("sam")
    assert export.main([str(directory), "--layout", "sam", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"encoder.onnx", "decoder.onnx"}
    return out


def pictures() -> list[np.ndarray]:
    return [draw(seed, *size).image_HW3 for seed, size in enumerate(SIZES)]


def test_masks_are_the_librarys(directory: Path, files: Path):
    """Without torch and this package: clicks, a box, and a click that improves the box's mask."""
    model, given, expected = SamClip.load(directory, dtype="float32", engine="torch"), {}, {}
    for number, image_HW3 in enumerate(pictures()):
        given[f"image{number}"] = image_HW3
        height, width = image_HW3.shape[:2]
        here, there = (0.3 * width, 0.6 * height), (0.8 * width, 0.2 * height)
        box = (0.2 * width, 0.1 * height, 0.8 * width, 0.7 * height)
        features = model.encode(image_HW3)
        prompts = {
            "click": (Prompt(points=(here,)), [here, (0, 0)], [1, -1]),
            "clicks": (
                Prompt(points=(here, there), negative=(False, True)),
                *([here, there, (0, 0)], [1, 0, -1]),
            ),
            "box": (Prompt(box=box), [box[:2], box[2:]], [2, 3]),
        }
        for name, (prompt, points_N2, labels) in prompts.items():
            (masks,) = model.segment(features, [prompt], multimask=len(labels) < 3)
            expected[f"{name}{number}"] = masks
            given |= {f"{name}{number}": points_N2, f"{name}{number}/labels": labels}
        again = Prompt(points=(here,), box=box, mask_input_hw=masks.logits_Mhw[0])
        (expected[f"again{number}"],) = model.segment(features, [again], multimask=False)
        given |= {f"again{number}": [here, box[:2], box[2:]], f"again{number}/labels": [1, 2, 3]}
    np.savez(files / "given.npz", **given)
    command = [sys.executable, "-c", TOOL, str(files), str(model.config.image_size)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answers = np.load(files / "answers.npz")
    assert len(expected) == 4 * len(SIZES)
    for name, masks in expected.items():
        assert abs(answers[f"{name}/iou"] - masks.predicted_iou_M[0]) < 1e-4, name
        logits_HW = answers[name]
        differ_HW = (logits_HW > 0) != masks.masks_MHW[0]
        undecided = 1e-4 * np.abs(masks.logits_Mhw[0]).max()
        assert np.abs(logits_HW[differ_HW]).max(initial=0) < undecided, (name, differ_HW.sum())
    assert any(0.01 < masks.masks_MHW[0].mean() < 0.99 for masks in expected.values())


def test_the_encoder_resizes_a_picture_of_any_size(directory: Path, files: Path):
    model = SamClip.load(directory, dtype="float32", engine="torch")
    session = onnxruntime.InferenceSession(str(files / "encoder.onnx"))
    thin_HW3 = draw(3, 1, 3000).image_HW3
    for image_HW3 in [*pictures(), thin_HW3]:
        sam_Dhw = model.encode(image_HW3).sam_Dhw
        assert sam_Dhw is not None
        for side in (1024, max(image_HW3.shape)):
            pixels = Geometry(*image_HW3.shape[:2], side).fit(image_HW3).astype(np.float32)
            (found,) = session.run(None, {"input_image": pixels})[0]
            assert found.shape == sam_Dhw.shape
            cosine = np.vdot(found, sam_Dhw) / np.linalg.norm(found) / np.linalg.norm(sam_Dhw)
            assert cosine > 0.99, (image_HW3.shape, side)


MAKE = """
import sys
from pathlib import Path
from samclip_core.engine import sam_layout

directory, digest, to = sys.argv[1:]
Path(to).write_bytes(sam_layout.decoder(Path(directory), digest))
assert not {"torch", "onnx"} & sys.modules.keys()
"""


def _copy(directory: Path, to: Path) -> str:
    """Copy what a decoder is made of; return the checkpoint's digest."""
    to.mkdir()
    for name in ("config.json", "manifest.json", sam_layout.GRAPH, checkpoint.WEIGHTS):
        shutil.copy(directory / name, to)
    return checkpoint.read_sealed_config(to)[1]


def test_the_decoder_of_an_exported_checkpoint_is_made_without_torch(files: Path, tmp_path: Path):
    digest = _copy(checkpoint.resolve("edge"), tmp_path / "edge")
    made = tmp_path / "decoder.onnx"
    subprocess.run([sys.executable, "-c", MAKE, tmp_path / "edge", digest, made], check=True)
    given = np.random.default_rng(0)
    config = checkpoint.read_config(tmp_path / "edge")
    inputs = {
        "image_embeddings": given.normal(size=(1, config.embed_dim, config.grid, config.grid)),
        "point_coords": [[[200, 300], [700, 400], [0, 0]]],
        "point_labels": [[1, 0, -1]],
        "mask_input": given.normal(size=(1, 1, 256, 256)),
        "has_mask_input": [1],
        "orig_im_size": [300, 451],
    }
    inputs = {name: np.array(value, np.float32) for name, value in inputs.items()}
    answers = [
        onnxruntime.InferenceSession(str(file)).run(None, inputs)
        for file in (made, files / "decoder.onnx")
    ]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "/etc/passwd"),
        ("location", "../x"),
        ("length", "-1"),
        ("length", str(2**40)),
        ("offset", "x"),
    ],
)
def test_a_graph_that_refers_to_other_files_is_refused(tmp_path: Path, key: str, value: str):
    digest = _copy(checkpoint.resolve("edge"), tmp_path / "edge")
    graph = onnx.load(tmp_path / "edge" / sam_layout.GRAPH, load_external_data=False)
    outside = next(each for each in graph.graph.initializer if each.external_data)
    next(entry for entry in outside.external_data if entry.key == key).value = value
    (tmp_path / "edge" / sam_layout.GRAPH).write_bytes(graph.SerializeToString())
    checkpoint.seal_graphs(tmp_path / "edge", 20, {sam_layout.GRAPH: {}})
    with pytest.raises(CheckpointError, match=r"is damaged .*: export it again"):
        sam_layout.decoder(tmp_path / "edge", digest)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        sam_layout.decoder(tmp_path / "edge", "0" * 64)


def test_what_protobuf_cannot_hold_is_refused(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "LARGEST_IN_GRAPH", 1000)
    out = tmp_path / "sam"
    assert export.main([str(tiny_checkpoint), "--layout", "sam", "--out", str(out)]) == 1
    assert "a graph holds less than 0.0 GB: convert a smaller SAM" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "words", [["--layout=sam"], ["--out=x"], ["--layout=sam", "--out=x", "--calibrate=y"]]
)
def test_options_that_do_not_belong_together_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        export.main(["edge", *words])
    assert "--layout needs --out" in capsys.readouterr().err
