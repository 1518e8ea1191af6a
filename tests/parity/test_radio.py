"""A converted RADIO against outputs of RADIO's and segment_anything's own modules.

The tolerance is 1e-4 of the largest value of an output. Graphs read pixels as uint8, so that their
SAM embedding, whose expected values come from resized floats, is compared with torch's.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from samclip_core.answers.dense import valid_cells
from samclip_core.answers.zero_shot import unit
from samclip_core.commands.convert_radio import Words, convert_radio
from samclip_core.commands.export import export
from samclip_core.config import TaskSizes
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from samclip_core.nn.text_encoder import load_text_encoder
from samclip_core.types import ImageFeatures, Prompt
from tests.parity.comparison import TOLERANCE, assert_near

LAYOUTS: dict[Words, str] = {"siglip2-g": ".", "clip": "torchhub.pth.tar"}
SIDES = {"96x160": 160, "224x224": 224, "512x320": 512}  # longer sides, so that nothing is resized
MASKS = ("96x160", "512x320")
Expected = Mapping[str, NDArray]


@pytest.fixture(scope="module")
def expected(radio_tiny: Path) -> Expected:
    return dict(np.load(radio_tiny / "expected.npz"))


@pytest.fixture(scope="module", params=get_args(Words))
def words(request) -> Words:
    return request.param


@pytest.fixture(scope="module")
def directory(radio_tiny: Path, words: Words, tmp_path_factory) -> Path:
    """Convert one layout per adaptor for words, and give the tasks the sides of the pictures."""
    files = radio_tiny / LAYOUTS[words], radio_tiny / "sam.pth"
    root = tmp_path_factory.mktemp(words)
    convert_radio(*files, f"local-dir:{radio_tiny}/text-{words}", root / "converted", words=words)
    config = checkpoint.read_config(root / "converted")
    config = replace(config, task_sizes=TaskSizes(classify=160, semantic=512, retrieval=224))
    parts = load_net(root / "converted"), load_text_encoder(root / "converted")
    checkpoint.save(root / "sides", *parts, config, {}, half=False)
    return root / "sides"


@pytest.fixture(scope="module")
def model(directory: Path) -> SamClip:
    return SamClip.load(directory, engine="torch")


def assert_words(found: ImageFeatures, expected: Expected, picture: str) -> None:
    """Compare the vectors of a picture and of its patches; ``picture`` includes the adaptor."""
    assert found.clip_pooled_D is not None
    assert_near(found.clip_pooled_D, unit(expected[f"{picture}/summary"]))
    dense_ND = valid_cells(found).reshape(len(found.clip_pooled_D), -1).T
    assert_near(dense_ND, unit(expected[f"{picture}/summary_mlp_on_features"]))


@pytest.mark.parametrize("picture", SIDES)
def test_words_of_a_picture_alone_and_in_a_batch(model, words, expected, picture):
    prepared = model.prepare(expected[f"{picture}/image"], SIDES[picture])
    other = model.prepare(255 - expected[f"{picture}/image"].transpose(1, 0, 2), SIDES[picture])
    for batch, slot in (([prepared], 0), ([other, prepared], 1)):
        assert_words(model.encode_batch(batch)[slot], expected, f"{picture}/{words}")


@pytest.mark.parametrize("picture", SIDES)
def test_backbone_features(model, expected, picture):
    prepared = model.prepare(expected[f"{picture}/image"], SIDES[picture])
    sizes_12 = torch.tensor([[prepared.geometry.input_height, prepared.geometry.input_width]])
    pixels_13SS = torch.from_numpy(prepared.pixels_3SS)[None].float()
    with torch.inference_mode():
        tokens_1ND = model.net.image_encoder(pixels_13SS, sizes_12).tokens_BDhw
    rows, columns = (side // 16 for side in sizes_12[0].tolist())
    grid = SIDES[picture] // 16
    patches_hwD = tokens_1ND[0, 1:].unflatten(0, (grid, grid))[:rows, :columns]
    assert_near(patches_hwD.flatten(0, 1).numpy(), expected[f"{picture}/backbone/features"])


@pytest.fixture(scope="module")
def frames(expected: Expected) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures for masks as RADIO resizes them: to multiples of 16, in floats."""
    frames_B3SS, sizes = torch.zeros(len(MASKS), 3, 1024, 1024), []
    for frame_3SS, picture in zip(frames_B3SS, MASKS, strict=True):
        image_13HW = torch.from_numpy(expected[f"{picture}/image"]).permute(2, 0, 1)[None].float()
        height, width = (side * 1024 // SIDES[picture] // 16 * 16 for side in image_13HW.shape[2:])
        frame_3SS[:, :height, :width] = F.interpolate(image_13HW, (height, width), mode="bilinear")
        sizes.append((height, width))
    return frames_B3SS, torch.tensor(sizes)


@pytest.mark.parametrize("slots", [[0], [1], [0, 1]])
def test_masks(model, expected, frames, slots):
    with torch.inference_mode():
        encoded = model.net.encode(frames[0][slots], frames[1][slots])
    for sam_Dhw, slot in zip(encoded.sam_BDhw.numpy(), slots, strict=True):
        picture = MASKS[slot]
        stored_Dhw = expected[f"{picture}/sam_embedding"]
        rounding = np.spacing(np.abs(stored_Dhw).max()) / 2
        atol = float(rounding) + TOLERANCE * float(np.abs(stored_Dhw).max())
        np.testing.assert_allclose(sam_Dhw, stored_Dhw.astype(np.float32), atol=atol, rtol=0)
        geometry = Geometry(*expected[f"{picture}/image"].shape[:2], 1024)
        features = ImageFeatures(geometry, sam_Dhw, None, None)
        point = Prompt(points=(tuple(expected[f"{picture}/point"]),))
        box = Prompt(box=tuple(expected[f"{picture}/box"]))
        for prompt, name, multimask in ((point, "point", True), (box, "box", False)):
            ((found,),) = model.sam_head.decode_batch([(features, [prompt])], multimask)
            iou_M = expected[f"{picture}/{name}/iou"]
            best_first = np.argsort(-iou_M, kind="stable")
            assert_near(found.predicted_iou_M, iou_M[best_first])
            assert_near(found.logits_Mhw, expected[f"{picture}/{name}/low_res"][best_first])


def test_texts(model, radio_tiny, words):
    theirs_TD = np.load(radio_tiny / f"text-{words}/texts.npy")
    assert_near(model.embed_text(["a cat", "a dog on a sofa"]), unit(theirs_TD))


@pytest.fixture(scope="module")
def with_graphs(directory: Path, model: SamClip) -> Path:
    """Export the graphs; ``model`` is loaded first, since it needs none."""
    export(directory)
    return directory


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def exported(request, with_graphs: Path) -> SamClip:
    return SamClip.load(with_graphs, engine=request.param, dtype="float32")


@pytest.mark.parametrize("words", ["siglip2-g"], indirect=True)
@pytest.mark.parametrize("picture", SIDES)
def test_graphs_give_the_words(exported, directory, words, expected, picture):
    side = SIDES[picture]
    session = onnxruntime.InferenceSession(directory / f"image_encoder.{side}.onnx")
    pictures = expected[f"{picture}/image"], expected[f"{picture}/image"].transpose(1, 0, 2)
    batch = [exported.prepare(image, side) for image in pictures]
    sizes = [(each.geometry.input_height, each.geometry.input_width) for each in batch]
    inputs = {"pixels": np.stack([each.pixels_3SS for each in batch]), "sizes": np.array(sizes)}
    sam_BDhw, dense_BDhw, pooled_BD = session.run(None, inputs)
    first = ImageFeatures(batch[0].geometry, sam_BDhw[0], dense_BDhw[0], pooled_BD[0])
    assert_words(first, expected, f"{picture}/{words}")
    compiled = exported.encode_batch(batch)[0]  # its outputs are float16
    np.testing.assert_allclose(compiled.clip_pooled_D, pooled_BD[0], atol=1e-3, rtol=0)
    np.testing.assert_allclose(compiled.clip_dense_Dhw, dense_BDhw[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("words", ["siglip2-g"], indirect=True)
def test_graphs_give_torchs_masks(exported, model, expected):
    for picture in MASKS:
        prepared = exported.prepare(expected[f"{picture}/image"])
        ours, theirs = (each.encode(prepared).sam_Dhw for each in (exported, model))
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max(), rtol=0)
        features = replace(model.encode(prepared), sam_Dhw=theirs.astype(np.float16))
        prompt = Prompt(points=(tuple(expected[f"{picture}/point"]),))
        (one,), (other,) = (
            each.sam_head.decode_batch([(features, [prompt])])[0] for each in (exported, model)
        )
        assert_near(one.logits_Mhw, other.logits_Mhw)
