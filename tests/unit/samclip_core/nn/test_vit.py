"""SAM's ViT for any frame is the official one, alone and in a batch."""

from functools import partial

import pytest
import torch
from segment_anything import modeling
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from samclip_core.families.sam import VARIANTS
from samclip_core.nn import vit
from samclip_core.nn.vit import ImageEncoder
from tests.weights import seeded

SIZE = 96
TINY = VARIANTS["tiny"]


def official(image_size: int) -> modeling.ImageEncoderViT:
    return modeling.ImageEncoderViT(
        img_size=image_size,
        embed_dim=TINY.width,
        depth=TINY.depth,
        num_heads=TINY.heads,
        out_chans=32,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=TINY.window,
        global_attn_indexes=TINY.global_blocks,
    )


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return seeded(lambda: ImageEncoder("tiny", image_size=SIZE, embed_dim=32), 0)


def frames(batch: int, height: int, width: int) -> torch.Tensor:
    return 255 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def sizes(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([[height, width]] * batch)


def official_answer(encoder: ImageEncoder, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """Return the official encoder's output with our weights and interpolated position table."""
    grid = torch.Size(length // 16 for length in pixels_B3HW.shape[-2:])
    reference = official(SIZE).eval()
    reference.load_state_dict(encoder.state_dict())
    reference.pos_embed = nn.Parameter(encoder._positions(grid))
    return reference((pixels_B3HW - encoder.pixels.mean_311) / encoder.pixels.std_311)


@pytest.mark.parametrize("side", [64, 160])
def test_another_side_equals_the_official_encoder_with_interpolated_tables(encoder, side):
    """The absolute table is resized bicubically, the global blocks' relative ones linearly."""
    grid, reference = side // 16, official(side).eval()
    tables = {}
    for key, table in encoder.state_dict().items():
        wanted = reference.state_dict()[key].shape
        if key == "pos_embed":
            resized = F.interpolate(
                table.permute(0, 3, 1, 2), (grid, grid), mode="bicubic", antialias=True
            )
            table = resized.permute(0, 2, 3, 1)
        elif "rel_pos" in key and table.shape != wanted:
            table = F.interpolate(table.T[None], wanted[0], mode="linear")[0].T
        tables[key] = table
    reference.load_state_dict(tables)
    pixels = frames(2, side, side)
    with torch.inference_mode():
        found = encoder(pixels, sizes(2, side, side)).sam_BDhw
        expected = reference((pixels - encoder.pixels.mean_311) / encoder.pixels.std_311)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_attention_that_learns_runs_on_the_fused_kernel_alone(encoder):
    pixels = frames(1, SIZE, SIZE)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = encoder(pixels, sizes(1, SIZE, SIZE))
    assert out.sam_BDhw.requires_grad
    torch.testing.assert_close(out.sam_BDhw, official_answer(encoder, pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 3, 4, 16], ids=lambda rows: f"{rows} rows at once")
@torch.no_grad()
def test_attention_of_exported_graphs_equals_the_fused_one(monkeypatch, rows):
    monkeypatch.setattr(vit, "ROWS_AT_ONCE", rows)
    random = torch.Generator().manual_seed(4)
    shapes = [(2, 3, 4, 6, 8)] * 3 + [(2, 3, 4, 6, 4), (2, 3, 4, 6, 6)]
    given = [torch.randn(shape, generator=random) for shape in shapes]
    torch.testing.assert_close(vit.attend_in_rows(*given), vit.attend_fused(*given))


def test_checkpointing_gives_the_same_gradients_for_less_memory(encoder):
    pixels, valid = frames(2, SIZE, SIZE), sizes(2, SIZE, SIZE)
    gradients, kept = [], []
    for checkpointing in (False, True):
        encoder.checkpointing = checkpointing
        with saved_tensors_hooks(lambda x: kept[-1].append(x.numel()) or x, lambda x: x):
            kept.append([])
            out = encoder(pixels, valid)
        (out.sam_BDhw.square().mean() + out.tokens_BDhw.square().mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
        encoder.zero_grad()
    encoder.checkpointing = False
    assert all(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert sum(kept[1]) < sum(kept[0]) / 4
