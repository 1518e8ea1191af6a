import pytest
import torch
from torch.nn import functional as F

from samclip_core.nn.clip_head import ClipHead, init_from_encoder
from samclip_core.nn.vit import ImageEncoder
from tests.unit.samclip_core.nn.batches import assert_alone_equals_batch
from tests.weights import seeded

WIDTH, GRID, TEXT = 64, 6, 24
SIZES = torch.tensor([[96, 96], [40, 96], [96, 1]])


def head(pool: str = "max") -> ClipHead:
    return seeded(lambda: ClipHead(WIDTH, 2, GRID, TEXT, pool=pool), 0)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randn(3, WIDTH, GRID, GRID, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_both_outputs_live_in_the_text_space_with_length_one(tokens, pool):
    with torch.inference_mode():
        dense, pooled = head(pool)(tokens, SIZES)
    assert dense.shape == (3, TEXT, GRID, GRID)
    assert pooled.shape == (3, TEXT)
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(3, GRID, GRID))
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(("pool", "reduce"), [("max", torch.amax), ("avg", torch.mean)])
def test_pooling_reads_only_the_valid_cells(tokens, pool, reduce):
    model = head(pool)
    with torch.inference_mode():
        _, pooled = model(tokens, SIZES)
        mapped_BhwD = model.blocks(tokens.permute(0, 2, 3, 1))
        for image, (rows, columns) in enumerate([(6, 6), (3, 6), (6, 1)]):
            vector = reduce(mapped_BhwD[image, :rows, :columns].flatten(0, 1), dim=0)
            expected = F.normalize(model.mlp(model.norm(vector)), dim=-1)
            torch.testing.assert_close(pooled[image], expected, atol=1e-5, rtol=0)


def test_dense_path_of_a_single_cell_equals_the_pooled_one():
    model = head()
    tokens = torch.randn(1, WIDTH, 1, 1, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        dense, pooled = model(tokens, torch.tensor([[16, 16]]))
    torch.testing.assert_close(dense[..., 0, 0], pooled)


@pytest.mark.parametrize("grid", [2, 4, 9])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_other_frames_pool_their_own_valid_cells_alone_or_in_a_batch(pool, grid):
    model = head(pool)
    tokens = torch.randn(2, WIDTH, grid, grid, generator=torch.Generator().manual_seed(grid))
    valid = torch.tensor([[16 * grid, 16 * grid], [16 * grid, 16]])
    with torch.inference_mode():
        dense, pooled = model(tokens, valid)
        mapped_BhwD = model.blocks(tokens.permute(0, 2, 3, 1))
        mapped_BhwD[1, :, 1:] = 1e4  # padding must not be read
        expected = model.mlp(model.norm(model._pool(mapped_BhwD, valid)))
    assert dense.shape == (2, TEXT, grid, grid)
    torch.testing.assert_close(pooled, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert_alone_equals_batch(model, tokens, valid)


def test_relative_positions_stretch_to_another_frame(tokens):
    """For a frame of twice the size, the table of relative positions is interpolated."""
    model = head()
    stretched = seeded(lambda: ClipHead(WIDTH, 2, 2 * GRID, TEXT), 1)
    state = model.state_dict()
    for key, value in state.items():
        if "rel_pos" in key:
            length = 2 * (2 * GRID) - 1
            state[key] = F.interpolate(value.T[None], length, mode="linear")[0].T
    stretched.load_state_dict(state)
    large = tokens.repeat(1, 1, 2, 2)
    with torch.inference_mode():
        dense, _ = model(large, 2 * SIZES)
        torch.testing.assert_close(dense, stretched(large, 2 * SIZES)[0], atol=1e-5, rtol=0)


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
