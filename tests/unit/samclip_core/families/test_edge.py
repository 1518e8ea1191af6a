"""The edge's networks: any frame, drawn prompts, and layers that begin as the identity."""

import pytest
import torch
from torch import Tensor, nn

from samclip_core.families.edge import EDGE
from samclip_core.families.edge.network import (
    DRAWN,
    EdgeClipHead,
    EdgeEncoder,
    EdgeMaskDecoder,
    EdgePromptEncoder,
    Mixer,
    Overview,
    drawn_prompt,
)
from samclip_core.types import BOX_MAX, BOX_MIN
from tests.weights import seeded

SIZE, WIDTH = 64, 16
GRID = SIZE // EDGE.stride


BOX_PN2, CORNERS_P2 = torch.tensor([[[3.0, 5.0], [40.0, 22.0]]]), torch.tensor([[BOX_MIN, BOX_MAX]])


@pytest.fixture(scope="module")
def encoder() -> EdgeEncoder:
    return seeded(lambda: EdgeEncoder(WIDTH), 0).eval()


@pytest.fixture(scope="module")
def prompts() -> EdgePromptEncoder:
    return seeded(lambda: EdgePromptEncoder(WIDTH, GRID, SIZE), 0).eval()


@pytest.fixture(scope="module")
def head(encoder: EdgeEncoder) -> EdgeClipHead:
    return seeded(lambda: EdgeClipHead(encoder.token_dim, text_dim=5, width=8, hidden=7), 1)


@pytest.mark.parametrize("side", [32, 64, 160])
@torch.no_grad()
def test_any_frame_is_encoded_and_only_its_image_pooled(
    encoder: EdgeEncoder, head: EdgeClipHead, side: int
) -> None:
    """Pixels in the padding affect nothing, and features there not the pooled embedding."""
    pixels_B3SS = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side)) * 255
    sizes_B2 = torch.tensor([[side, side], [side, side // 2 - 3]])
    cleared_B3SS = pixels_B3SS.clone()
    cleared_B3SS[1, :, :, side // 2 - 3 :] = 0
    out, other = encoder(pixels_B3SS, sizes_B2), encoder(cleared_B3SS, sizes_B2)
    assert out.sam_BDhw.shape == (2, WIDTH, side // 8, side // 8)
    assert out.tokens_BDhw.shape == (2, encoder.token_dim, side // 16, side // 16)
    torch.testing.assert_close(other.sam_BDhw, out.sam_BDhw)
    torch.testing.assert_close(other.tokens_BDhw, out.tokens_BDhw)
    changed_BDhw = other.tokens_BDhw.clone()
    changed_BDhw[1, :, :, -(-(side // 2 - 3) // 16) :] += 1
    dense_BDhw, pooled_BD = head(out.tokens_BDhw, sizes_B2)
    assert dense_BDhw.shape == (2, 5, side // 16, side // 16)
    torch.testing.assert_close(pooled_BD, head(changed_BDhw, sizes_B2)[1])


def test_a_box_is_drawn_with_its_area_however_small(prompts: EdgePromptEncoder) -> None:
    boxes_P4 = torch.tensor([[3.0, 5.0, 40.0, 22.0], [10.2, 10.2, 10.7, 10.4]])
    cell = SIZE / prompts.mask_input_size[0]
    drawn_Pmm = prompts._draw_boxes(boxes_P4.reshape(-1, 2, 2), CORNERS_P2)
    areas_P = (boxes_P4[:, 2] - boxes_P4[:, 0]) * (boxes_P4[:, 3] - boxes_P4[:, 1])
    torch.testing.assert_close(drawn_Pmm.sum(dim=(1, 2)) * cell**2, areas_P)
    assert drawn_Pmm.max() <= 1


def test_clicks_are_drawn_where_they_are_with_their_sign(prompts: EdgePromptEncoder) -> None:
    points_PN2 = torch.tensor([[[8.5, 40.5], [50.5, 10.5], [0.0, 0.0]]])
    labels_PN = torch.tensor([[1.0, 0.0, -1.0]])
    narrow_mm, wide_mm = prompts._draw_points(points_PN2, labels_PN)[0]
    column, row = (int(v) for v in ((points_PN2[0, 0] + 0.5) // 2))
    assert narrow_mm.argmax() == row * narrow_mm.shape[1] + column
    assert narrow_mm[10 // 2, 50 // 2] < -0.9
    assert abs(float(narrow_mm[0, 0])) < 0.01  # padding points are not drawn
    assert wide_mm.abs().sum() > narrow_mm.abs().sum()


def embedded(
    prompts: EdgePromptEncoder,
    points_PN2: Tensor,
    labels_PN: Tensor,
    logits_P1mm: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    empty_P1mm = torch.zeros(1, 1, *prompts.mask_input_size)
    return prompts.embed(
        points_PN2, labels_PN, empty_P1mm if logits_P1mm is None else logits_P1mm, None
    )


@torch.no_grad()
def test_the_drawn_prompt_stands_behind_the_embedded_one(prompts: EdgePromptEncoder) -> None:
    _, dense_PDhw = embedded(prompts, BOX_PN2, CORNERS_P2)
    drawn_PCmm = drawn_prompt(dense_PDhw[:, WIDTH:])
    assert drawn_PCmm.shape == (1, DRAWN, *prompts.mask_input_size)
    assert torch.equal(drawn_PCmm[:, 1], prompts._draw_boxes(BOX_PN2, CORNERS_P2))
    assert not drawn_PCmm[:, [0, 2, 3]].any()


@pytest.fixture
def decoder() -> EdgeMaskDecoder:
    return seeded(lambda: EdgeMaskDecoder(WIDTH, depth=1, heads=2, mlp_dim=16), 0)


@torch.no_grad()
def test_a_mask_is_as_sharp_as_the_drawn_prompt(
    decoder: EdgeMaskDecoder, prompts: EdgePromptEncoder
) -> None:
    """The drawn prompt is added to the logits cell by cell, with a weight per mask token."""
    image_BDhw, index_P = torch.randn(1, WIDTH, GRID, GRID), torch.zeros(1, dtype=torch.long)
    sparse_PND, dense_PDhw = embedded(prompts, BOX_PN2, CORNERS_P2)
    given = image_BDhw, prompts.get_dense_pe(), sparse_PND, dense_PDhw, index_P
    nn.init.zeros_(decoder.drawing.weight)
    nn.init.zeros_(decoder.drawing.bias)
    without_PMmm, _ = decoder.decode(*given)
    decoder.drawing.bias[1] = 2.0
    with_PMmm, _ = decoder.decode(*given)
    drawn_mm = drawn_prompt(dense_PDhw[:, WIDTH:])[0, 1]
    torch.testing.assert_close(with_PMmm - without_PMmm, 2 * drawn_mm.expand(1, 4, -1, -1))


def test_what_mixes_starts_as_the_identity() -> None:
    """A mixing layer can be added to a trained network without changing its output."""
    map_PDhw = torch.randn(1, WIDTH, GRID, GRID)
    for module in (Mixer(WIDTH), Mixer(WIDTH, 3 * WIDTH), Overview(WIDTH)):
        torch.testing.assert_close(module(map_PDhw), map_PDhw)
