"""TIPSv2 against outputs of its own modules, and against transformers' classes.

The tolerance is 1e-4 of the largest value of an output.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from samclip_core.commands.convert import convert
from samclip_core.commands.export import export
from samclip_core.engine.compiled import CompiledEngine
from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.errors import InvalidLabels
from samclip_core.families.tips.files import (
    TEMPLATES,
    OfficialTips,
    load,
    positions_of,
)
from samclip_core.families.tips.network import TipsTower
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.clip_tower import lay_over_frame
from samclip_core.types import Prompt
from tests.official import small_sam, write
from tests.parity.comparison import HALF, assert_near
from tests.tips_models import WORDS, write_tokens
from tests.weights import seeded

SIDE = 448  # of the frame, which is then the tower's own
SIZES = [(448, 448), (448, 252), (150, 448)]


def assert_close(found: NDArray | torch.Tensor, expected: NDArray) -> None:
    graphs_output = np.asarray(found).dtype == np.float16
    assert_near(found, expected, HALF if graphs_output else 0)


@pytest.fixture(scope="module")
def expected(tips_tiny: Path) -> dict[str, NDArray]:
    return dict(np.load(tips_tiny / "expected.npz"))


@pytest.fixture(scope="module")
def official(tips_tiny: Path) -> OfficialTips:
    return load(tips_tiny)


def tower_of(official: OfficialTips) -> TipsTower:
    assert official.text.image is not None
    tower = TipsTower(official.text.image).eval()
    official.fill_tower(tower)
    return tower


def test_class_tokens_and_patches(official, expected):
    tower, frame_13HW = tower_of(official), torch.from_numpy(expected["frame_CHW"])[None]
    class_B2D, values_BDhw = tower.read(frame_13HW)
    assert_close(class_B2D[0, 0], expected["first_class_token"])
    assert_close(class_B2D[0, 1], expected["second_class_token"])
    assert_close(values_BDhw[0].flatten(1).T, expected["value_patch_tokens"])
    assert_close(tower.forward_features(frame_13HW)[0, 2:], expected["patch_tokens"])


def test_another_frame_has_resized_positions(official, expected):
    tower = tower_of(official)
    table_1ND = tower.pos_embed
    tower.set_input_size((448, 336))
    tower.pos_embed = nn.Parameter(positions_of(table_1ND, (32, 24)))
    class_B2D, values_BDhw = tower.read(torch.from_numpy(expected["frame_448x336_CHW"])[None])
    assert_close(class_B2D[0, 1], expected["second_class_token_448x336"])
    assert_close(values_BDhw[0].flatten(1).T, expected["value_patch_tokens_448x336"])


def test_texts(official, expected):
    encoder = official.text_encoder()
    ids_TN = encoder.tokenizer([str(text) for text in expected["texts"]])
    np.testing.assert_array_equal(ids_TN, expected["ids"])
    text_TD = F.normalize(torch.from_numpy(expected["text_embedding"]))
    assert_close(encoder(torch.from_numpy(ids_TN)), text_TD.numpy())
    with pytest.raises(InvalidLabels, match="text 1 has no visible character"):
        encoder.tokenizer(["a cat", "\u200b"])


@pytest.fixture(scope="module")
def directory(tips_tiny: Path, tmp_path_factory) -> Path:
    """Convert a pair whose frame is the image tower's, and export it."""
    root = tmp_path_factory.mktemp("tips")
    sam = write(small_sam(SIDE, 32), root, "sam.pth")
    convert(sam, f"local-dir:{tips_tiny}", root / "pair")
    export(root / "pair")
    return root / "pair"


@pytest.mark.parametrize("runtime", ["torch", "openvino", "onnxruntime"])
def test_a_pair_alone_and_in_a_batch(directory, official, expected, runtime):
    """The first picture is that of the expected tokens; all are stretched to the tower's frame."""
    engine = (
        TorchEngine.load(directory, "cpu", "float32")
        if runtime == "torch"
        else CompiledEngine(directory, "float32", runtime=runtime)
    )
    random = np.random.default_rng(0)
    pixels_B3SS = random.integers(0, 256, (len(SIZES), 3, SIDE, SIDE), np.uint8)
    pixels_B3SS[0] = np.round(255 * expected["frame_CHW"])
    sizes_B2, tower = np.array(SIZES, np.int64), tower_of(official)
    batch = engine.encode(pixels_B3SS, sizes_B2)
    for index, (height, width) in enumerate(SIZES):
        alone = engine.encode(pixels_B3SS[index : index + 1], sizes_B2[index : index + 1])
        part_13HW = torch.from_numpy(pixels_B3SS[index, :, :height, :width].copy())[None] / 255
        class_B2D, values_BDhw = tower.read(
            F.interpolate(part_13HW, (SIDE, SIDE), mode="bilinear", antialias=True)
        )
        pooled_D = F.normalize(class_B2D[0, 0], dim=0).numpy()
        size_12 = torch.from_numpy(sizes_B2[index : index + 1])
        dense_BDhw = lay_over_frame(F.normalize(values_BDhw, dim=1), size_12, SIDE, 64).numpy()
        for found in (alone.clip_pooled_BD[0], batch.clip_pooled_BD[index]):
            assert_close(found, pooled_D)
        for found in (alone.clip_dense_BDhw[0], batch.clip_dense_BDhw[index]):
            assert_close(found, dense_BDhw[0])
    text_TD = engine.embed_text(expected["ids"])
    assert_close(text_TD, F.normalize(torch.from_numpy(expected["text_embedding"])).numpy())


def test_a_pair_answers(directory, expected):
    config = checkpoint.read_config(directory)
    assert config.logit_scale == pytest.approx(100)
    assert config.templates == TEMPLATES
    model = SamClip.load(directory)
    image = expected["image"]
    assert len(model.classify(image, ["a cat", "École"])) == 2
    assert model.segment_text(image, ["a cat", "the wall"]).label_map_HW.shape == image.shape[:2]
    (answer,) = model.segment(image, [Prompt(points=((320.0, 200.0),))])
    assert answer.masks_MHW.shape[1:] == image.shape[:2]
    assert isinstance(model.find(image, ["a cat"]), list)


@pytest.mark.parametrize("gated", [False, True])
def test_transformers(tmp_path: Path, gated: bool):
    """The model's own scores are of the first class token."""
    transformers = pytest.importorskip("transformers", minversion="5.14")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Tipsv2Config(
        text_config=sizes | {"intermediate_size": 96, "vocab_size": len(WORDS) + 2},
        vision_config=sizes | {"mlp_ratio": 2.5, "image_size": 224, "use_swiglu_ffn": gated},
    )
    theirs = seeded(lambda: transformers.Tipsv2Model(config), 0)
    theirs.save_pretrained(tmp_path)
    transformers.Tipsv2ImageProcessor(size={"height": 336, "width": 336}).save_pretrained(tmp_path)
    write_tokens(tmp_path, WORDS)
    official = load(tmp_path)
    encoder, tower = official.text_encoder(), tower_of(official)
    assert official.logit_scale == pytest.approx(1 / theirs.temperature.item())
    pixels_13HW = torch.rand(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    ids_TN = torch.from_numpy(encoder.tokenizer(["a cat", "a dog, École"]))
    with torch.no_grad():
        images = theirs.vision_model(pixels_13HW)
        texts_TD = theirs.get_text_features(ids_TN, attention_mask=ids_TN != 0).pooler_output
    class_B2D, _ = tower.read(pixels_13HW)
    for found, other in (
        (class_B2D[:, 0], images.pooler_output),
        (tower.forward_features(pixels_13HW)[0], images.last_hidden_state[0]),
        (encoder(ids_TN), F.normalize(texts_TD)),
    ):
        assert F.cosine_similarity(found, other).min() >= 0.99999
        assert_close(found, other.numpy())
