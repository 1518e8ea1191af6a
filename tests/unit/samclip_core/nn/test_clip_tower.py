"""All kinds of open_clip image towers, small and with random weights, and the pair that has one."""

from collections.abc import Callable
from functools import cache
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samclip_core.config import Filter
from samclip_core.errors import CheckpointError
from samclip_core.nn.clip_model import describe
from samclip_core.nn.clip_tower import (
    PairClipHead,
    _read_cells,
    build_image_tower,
    build_tower,
    read_tower,
    resize_valid,
)
from tests.clip_models import GRID, INPUT, PE_CORE, TEXT_DIM, add_clip, add_small_clip, named
from tests.official import clip
from tests.weights import seeded


def timm(model: str, size: int, **more: Any) -> dict[str, Any]:
    named = {"timm_model_name": model, "timm_model_pretrained": True, "image_size": size}
    return named | {"timm_pool": "", "timm_proj": "linear"} | more


# Architecture and side of its feature map, by kind.
TOWERS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": ({}, GRID),
    "resnet": ({"image_size": INPUT, "layers": [1, 1, 1, 1], "width": 32, "head_width": 64}, 2),
    "timm-token": (timm("test_vit", 64), 4),
    "timm-average": (timm("test_vit2", 64, timm_pool="avg"), 4),
    "timm-attention": (timm("test_vit3", 160, timm_pool="map"), 10),
    "timm-rotary": (PE_CORE, 24),
    "timm-convolution": (timm("test_convnext", 64, timm_pool="avg"), 2),
    "timm-fastvit": (timm("fastvit_t8", 64, timm_pool="avg", timm_proj=None), 2),
}

# One published architecture per kind of tower and pooling in open_clip's list.
FAMILIES = (
    *("RN50", "ViT-B-32", "ViT-M-16-alt", "ViT-L-14-CLIPA", "EVA02-B-16", "MobileCLIP-B"),
    *("MobileCLIP-S1", "MobileCLIP2-S3", "ViT-B-16-SigLIP", "ViTamin-S", "convnext_base"),
    *("convnext_large_d", "swin_base_patch4_window7_224", "vit_medium_patch16_gap_256"),
    *("vit_relpos_medium_patch16_cls_224", "PE-Core-S-16-384", "PE-Core-L-14-336"),
)


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> Callable[[str], tuple[nn.Module, nn.Module]]:
    """Return a function from kind to our tower and open_clip's model with the same weights."""

    @cache
    def build(kind: str) -> tuple[nn.Module, nn.Module]:
        name = add_clip(tmp_path_factory.mktemp("clip"), f"samclip-test-{kind}", TOWERS[kind][0])
        official = clip(name)
        if kind == "timm-rotary":  # its head begins near zero: all pictures would look alike
            official.visual.trunk.head.weight.data *= 1000
        ours = build_tower(named(name)).eval()
        ours.load_state_dict(official.visual.state_dict())
        return ours, official

    return build


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_pooled_is_open_clips_and_patches_lie_in_the_same_space(towers, kind: str):
    (ours, official), grid = towers(kind), TOWERS[kind][1]
    size = ours.image_size if isinstance(ours.image_size, tuple) else (ours.image_size,) * 2
    # A ResNet with random weights responds only to strong contrasts.
    pixels = 50 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    dense, pooled = read_tower(ours, pixels)
    expected = official.encode_image(pixels, normalize=True)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    assert dense.shape == (2, TEXT_DIM, grid, grid)
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(2, grid, grid))
    assert (dense[..., 0, 0] - dense[..., 1, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("model", FAMILIES)
@torch.no_grad()
def test_open_clips_published_towers_give_patches_in_the_space_of_texts(model: str):
    with torch.device("meta"):
        tower = build_tower(named(model))
        size = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size,) * 2
        dense, pooled = read_tower(tower, torch.empty(2, 3, *size))
    assert pooled.shape == (2, describe(model)["model_cfg"]["embed_dim"])
    assert (dense.shape[:2], dense.shape[2] > 1, dense.shape[3] > 1) == (pooled.shape, True, True)


@pytest.mark.parametrize("kind", [kind for kind in TOWERS if kind.startswith("timm")])
@torch.no_grad()
def test_a_cell_says_what_a_picture_of_nothing_else_would(towers, kind: str):
    ours, _ = towers(kind)
    random = torch.Generator().manual_seed(2)
    cells_NC = torch.randn(3, ours.trunk.num_features, generator=random)
    if hasattr(ours.trunk, "num_prefix_tokens"):
        uniform = cells_NC[:, None].expand(-1, ours.trunk.num_prefix_tokens + 16, -1)
    else:
        uniform = cells_NC[:, :, None, None].expand(-1, -1, 4, 4)
    expected = ours.head(ours.trunk.forward_head(uniform))
    torch.testing.assert_close(_read_cells(ours, cells_NC), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [48, (30, 70)], ids=str)
def test_resizing_equals_torchs_own_for_every_size(side, filter: Filter):
    random = torch.Generator().manual_seed(3)
    sizes = torch.tensor([[96, 96], [1, 96], [96, 2], [48, 48], [47, 49], [33, 95]])
    pixels = 255 * torch.rand(len(sizes), 3, 96, 96, generator=random)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = resize_valid(pixels, sizes, side, filter)
    for slot, (height, width) in enumerate(sizes.tolist()):
        part = pixels[slot : slot + 1, :, :height, :width]
        expected = F.interpolate(part, side, mode=filter, antialias=True).clamp(0, 255)
        torch.testing.assert_close(seen[slot : slot + 1], expected, atol=1e-3 * 255, rtol=0)


def test_a_tower_that_pools_its_patches_by_attention_is_refused():
    with torch.device("meta"), pytest.raises(CheckpointError, match="pools its patches"):
        build_tower(named("coca_ViT-B-32"))


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


def test_a_tower_that_is_no_vit_is_refused():
    with torch.device("meta"), pytest.raises(CheckpointError, match="RN50' is no ViT"):
        build_image_tower(named("RN50"))
