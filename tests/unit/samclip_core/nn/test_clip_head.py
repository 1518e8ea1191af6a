"""The CLIP head: padding changes nothing, and the blocks are SAM's own."""

import pytest
import torch
from segment_anything.modeling.image_encoder import Block
from torch import Tensor
from torch.nn import functional as F

from samclip_core.nn.clip_head import ClipHead, init_from_encoder
from samclip_core.nn.vit import PATCH, ImageEncoder, key_padding, run_blocks, valid_sides
from tests.weights import seeded

WIDTH, GRID, TEXT = 64, 6, 24
SIZES = torch.tensor([[96, 96], [40, 96], [96, 1]])


def head() -> ClipHead:
    return seeded(lambda: ClipHead(WIDTH, 2, GRID, TEXT), 0)


def mapped(model: ClipHead, tokens_BDhw: Tensor, sizes_B2: Tensor) -> Tensor:
    """Return the tokens after the blocks, B×h×w×D."""
    padding = key_padding(*valid_sides(sizes_B2, *tokens_BDhw.shape[2:], PATCH), torch.float32)
    return run_blocks(model.blocks, tokens_BDhw.permute(0, 2, 3, 1), False, *padding)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randn(3, WIDTH, GRID, GRID, generator=torch.Generator().manual_seed(1))


def test_pooling_reads_only_the_valid_cells(tokens):
    model = head()
    with torch.inference_mode():
        _, pooled = model(tokens, SIZES)
        mapped_BhwD = mapped(model, tokens, SIZES)
        for image, (rows, columns) in enumerate([(6, 6), (3, 6), (6, 1)]):
            vector = mapped_BhwD[image, :rows, :columns].flatten(0, 1).amax(dim=0)
            expected = F.normalize(model.mlp(model.norm(vector)), dim=-1)
            torch.testing.assert_close(pooled[image], expected, atol=1e-5, rtol=0)


def test_a_padded_frame_is_answered_as_its_valid_part_alone(tokens):
    """The tables of positions of the small head are the middle of the large one's."""
    large, small = head(), seeded(lambda: ClipHead(WIDTH, 2, GRID // 2, TEXT), 1)
    state = large.state_dict()
    for key, table in state.items():
        if "rel_pos" in key:
            state[key] = table.normal_()[GRID // 2 : -(GRID // 2)]
    small.load_state_dict(state)
    sizes = torch.full((3, 2), PATCH * GRID // 2)
    with torch.inference_mode():
        dense, pooled = large(tokens, sizes)
        expected = small(tokens[..., : GRID // 2, : GRID // 2], sizes)
    torch.testing.assert_close(dense[..., : GRID // 2, : GRID // 2], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_padding_holds_changes_neither_answers_nor_gradients(tokens, dtype):
    model, sizes, found = head().to(dtype), torch.tensor([[40, 96], [96, 20], [17, 17]]), []
    rows, columns = valid_sides(sizes, GRID, GRID, PATCH)
    valid_B1hw = (rows[:, :, None] & columns[:, None])[:, None]
    for noise in (0.0, 30.0):
        given = torch.where(valid_B1hw, tokens, noise * tokens.flip(0)).to(dtype)
        dense, pooled = model(given, sizes)
        (dense * valid_B1hw).square().sum().add(pooled.sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([dense.detach() * valid_B1hw, pooled.detach(), *gradients])
        model.zero_grad(set_to_none=True)
    assert all(one.isfinite().all() for one in found[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)


def test_without_padding_the_blocks_are_sams_own(tokens):
    model, sizes = head(), torch.full((3, 2), PATCH * GRID)
    with torch.inference_mode():
        for block in model.blocks:
            block.attn.rel_pos_h.normal_()
            block.attn.rel_pos_w.normal_()
        expected_BhwD = tokens.permute(0, 2, 3, 1)
        for block in model.blocks:
            official = Block(
                WIDTH, 2, norm_layer=type(block.norm1), use_rel_pos=True, input_size=(GRID, GRID)
            )
            official.load_state_dict(block.state_dict())
            official.norm1.eps = official.norm2.eps = block.norm1.eps
            expected_BhwD = official(expected_BhwD)
        torch.testing.assert_close(mapped(model, tokens, sizes), expected_BhwD, atol=1e-5, rtol=0)


def test_starts_as_copies_of_the_encoders_last_block():
    encoder = seeded(lambda: ImageEncoder("tiny", image_size=96, embed_dim=32), 4)
    model = head()
    init_from_encoder(model, encoder.blocks[-1].state_dict())
    expected = encoder.blocks[-1].state_dict()
    assert len(model.blocks) == 3
    for block in model.blocks:
        for key, value in block.state_dict().items():
            assert torch.equal(value, expected[key])
    with torch.no_grad():
        model.blocks[0].mlp.lin1.weight.zero_()
    assert encoder.blocks[-1].mlp.lin1.weight.any()
