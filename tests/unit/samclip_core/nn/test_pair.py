import open_clip
import pytest
import torch
from torch.nn import functional as F

from samclip_core.errors import CheckpointError
from samclip_core.nn.clip_tower import PairClipHead, PairEncoder, build_image_tower, read_tower
from samclip_core.nn.vit import ImageEncoder
from tests.clip_models import GRID, INPUT, TEXT_DIM, add_small_clip, named
from tests.unit.samclip_core.nn.batches import assert_alone_equals_batch
from tests.weights import seeded

FRAME = 128
SIZES = torch.tensor([[FRAME, FRAME], [64, FRAME], [FRAME, 50]])


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory) -> str:
    return add_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def head(clip_model) -> PairClipHead:
    return seeded(lambda: PairClipHead(named(clip_model)), 0)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    coarse = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return 255 * F.interpolate(coarse, FRAME, mode="nearest")


def test_clip_sees_the_valid_part_alone_as_its_own_preprocessing_gives_it(head, pixels):
    """A picture of CLIP's input size is only cropped and normalised, not resized."""
    image = pixels[:1].clone()
    image[:, :, INPUT:] = image[:, :, :, INPUT:] = 7.0
    seen = head.clip_input(image, torch.tensor([[INPUT, INPUT]]))
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    expected = (image[:, :, :INPUT, :INPUT] / 255 - mean) / std
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)


def test_dense_lets_each_patch_attend_only_to_itself_in_the_last_block(head, pixels):
    """In the reference, the last block's attention is only values → output projection."""
    visual = head.visual
    *blocks, last = visual.transformer.resblocks
    with torch.inference_mode():
        dense, _ = head(pixels[:1], SIZES[:1])
        tokens = visual._embeds(head.clip_input(pixels[:1], SIZES[:1]))
        for block in blocks:
            tokens = block(tokens)
        weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
        tokens = tokens + last.attn.out_proj(F.linear(last.ln_1(tokens), weight, bias))
        tokens = tokens + last.mlp(last.ln_2(tokens))
        patches = F.normalize(visual.ln_post(tokens)[:, 1:] @ visual.proj, dim=-1)
        grid = patches.transpose(1, 2).unflatten(2, (GRID, GRID))
        expected = F.interpolate(grid, 2 * GRID, mode="bilinear", align_corners=False)
    torch.testing.assert_close(dense, F.normalize(expected, dim=1), atol=1e-5, rtol=0)


def test_dense_lies_over_the_padded_frame(head, pixels):
    """The map of a 2:1 picture fills the upper half of the frame; the rest repeats its edge."""
    with torch.inference_mode():
        half, _ = head(pixels[1:2], torch.tensor([[FRAME // 2, FRAME]]))
        grid, _ = read_tower(
            head.visual, head.clip_input(pixels[1:2], torch.tensor([[FRAME // 2, FRAME]]))
        )
        upper = F.interpolate(grid, (GRID, 2 * GRID), mode="bilinear", align_corners=False)
    assert half.shape == (1, TEXT_DIM, 2 * GRID, 2 * GRID)
    torch.testing.assert_close(half[:, :, :GRID], F.normalize(upper, dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(half[:, :, GRID:], half[:, :, GRID - 1 : GRID].expand_as(upper))


def test_an_image_alone_equals_it_in_a_batch(head, pixels):
    assert_alone_equals_batch(head, pixels, SIZES)


def test_encoder_is_sams_and_hands_the_pixels_on(pixels):
    encoder = seeded(lambda: PairEncoder("tiny", FRAME, 32), 3)
    sam = ImageEncoder("tiny", FRAME, 32).eval()
    sam.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        out = encoder(pixels, SIZES)
        expected = sam(pixels, SIZES).sam_BDhw
    assert out.tokens_BDhw is pixels
    torch.testing.assert_close(out.sam_BDhw, expected, atol=0, rtol=0)


def test_a_tower_that_is_no_vit_is_refused():
    with torch.device("meta"), pytest.raises(CheckpointError, match="RN50' is no ViT"):
        build_image_tower(named("RN50"))
