"""A dense teacher's map, its standardised features, and the head that predicts them."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samclip_core.errors import CheckpointError
from tests.dense_models import TINY_DENSE, write_dense
from tests.weights import seeded
from training.distillation.dense import (
    DenseHead,
    DenseTeacher,
    PhiS,
    hadamard,
    load_dense_teacher,
)

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
LAYOUTS = {
    "vit_small_patch14_dinov2": 37,  # a class token
    "vit_small_patch14_reg4_dinov2": 37,  # and registers
    "vit_small_patch16_dinov3": 16,  # rotary positions
}


def pixels(side: int, count: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (count, 3, side, side), generator=random).float()


@pytest.mark.parametrize(("name", "grid"), LAYOUTS.items())
def test_its_map_holds_the_tokens_of_the_patches(name: str, grid: int):
    """For a picture that fills the frame, at the model's own size, mean and deviation."""
    model = seeded(lambda: timm.create_model(name, **SMALL), 0)
    published = model.pretrained_cfg
    frames_B3SS = pixels(published["input_size"][-1], 1)
    side = frames_B3SS.shape[-1]
    dense_BDhw = DenseTeacher(model)(frames_B3SS, torch.tensor([[side, side]]))
    mean_311, std_311 = (torch.tensor(published[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        tokens_BND = model.forward_features((frames_B3SS / 255 - mean_311) / std_311)
    patches_BND = tokens_BND[:, model.num_prefix_tokens :]
    assert dense_BDhw.shape == (1, SMALL["embed_dim"], grid, grid)
    torch.testing.assert_close(dense_BDhw.flatten(2).mT, patches_BND, atol=1e-3, rtol=1e-3)


def test_it_sees_the_valid_part_alone_and_never_trains():
    teacher = DenseTeacher(seeded(lambda: timm.create_model(TINY_DENSE), 0)).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    frames_B3SS, sizes_B2 = pixels(96), torch.tensor([[96, 96], [48, 96]])
    other_B3SS = frames_B3SS.clone()
    other_B3SS[1, :, 48:] = 0
    maps_BDhw = teacher(frames_B3SS, sizes_B2)
    assert maps_BDhw.shape == (2, 64, 10, 10)  # 160 pixels in patches of 16
    torch.testing.assert_close(teacher(other_B3SS, sizes_B2), maps_BDhw)


def test_weights_come_from_a_file_in_the_layout_of_timm(tmp_path: Path):
    given = write_dense(tmp_path)
    expected = torch.load(given.partition(":")[2], weights_only=True)
    assert_equal(load_dense_teacher(given).model.state_dict(), expected)


def test_weights_come_from_a_file_in_the_layout_of_dinov2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "vit_small_patch14_reg4_dinov2"
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **SMALL))
    expected = seeded(lambda: timm.create_model(name), 1).state_dict()
    # DINOv2's files have a position of the class token, registers under another name, a mask token.
    own = {key: value for key, value in expected.items() if key != "reg_token"}
    own["register_tokens"] = expected["reg_token"]
    own["cls_token"] = torch.zeros_like(expected["cls_token"])
    own["pos_embed"] = torch.cat([expected["cls_token"], expected["pos_embed"]], dim=1)
    own["mask_token"] = torch.zeros(1, SMALL["embed_dim"])
    torch.save(own, tmp_path / "dinov2.pth")
    teacher = load_dense_teacher(f"{name}.lvd142m:{tmp_path / 'dinov2.pth'}")
    assert_equal(teacher.model.state_dict(), expected)
    assert teacher.input_size == (518, 518)


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("test_vit2", "none.pth", r"no file .*none\.pth"),
        ("test_vit2", "text.pth", "cannot be read as plain tensors"),
        ("test_vit", "dense.pth", r"does not hold weights of .*'test_vit' .*reg_token.*MODEL:FILE"),
        ("vit_huge_dinov5", "dense.pth", r"'vit_huge_dinov5' \(Unknown model"),
        ("test_vit2.lvd142m", "dense.pth", r"Invalid pretrained tag \(lvd142m\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, name: str, file: str, message: str):
    write_dense(tmp_path)
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(CheckpointError, match=message):
        load_dense_teacher(f"{name}:{tmp_path / file}")


def test_a_model_without_maps_is_refused():
    with pytest.raises(ValueError, match="Linear returns no feature maps"):
        DenseTeacher(nn.Linear(1, 1))


def test_the_head_reads_every_token_alone_and_keeps_the_standardisation():
    random = torch.Generator().manual_seed(0)
    standard = PhiS.fit([torch.randn(50, 8, generator=random)])
    head = DenseHead(6, standard)
    tokens_BDhw = torch.randn(2, 6, 3, 5, generator=random)
    predicted_BDhw = head(tokens_BDhw)
    assert predicted_BDhw.shape == (2, 8, 3, 5)
    one_BDhw = head(tokens_BDhw[:1, :, 1:2, 2:3])
    torch.testing.assert_close(one_BDhw, predicted_BDhw[:1, :, 1:2, 2:3])
    again = DenseHead(6, PhiS(8))
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.standard.rotation_DD, standard.rotation_DD)
    assert not any(name.startswith("standard") for name, _ in head.named_parameters())


WIDTHS = [1, 2, 4, 12, 20, 24, 48, 64, 72]


def correlated(width: int, seed: int, count: int = 400) -> Tensor:
    """Return correlated features with a large mean, different scales and constant channels."""
    random = torch.Generator().manual_seed(seed)
    spread_D = torch.logspace(-2, 2, width) * (torch.arange(width) % 5 != 4)
    mixing_DD = torch.randn(width, width, generator=random)
    features_ND = torch.randn(count, width, generator=random) * spread_D
    return features_ND @ mixing_DD + 30 * torch.randn(width, generator=random)


@given(st.sampled_from(WIDTHS), st.integers(0, 1000))
def test_channels_have_mean_0_and_all_the_same_variance_1(width: int, seed: int):
    features_ND = correlated(width, seed)
    standard = PhiS.fit(features_ND.split(90))
    standard_ND = standard.double()(features_ND.double())
    # The parameters are float32, which limits the precision of the mean.
    rounding = 1e-6 * features_ND.abs().max() / standard.scale
    assert standard_ND.mean(dim=0).abs().max() < 1e-4 + rounding
    torch.testing.assert_close(
        standard_ND.var(dim=0, correction=0).float(), torch.ones(width), atol=1e-3, rtol=0
    )


def test_distances_keep_their_proportions():
    """Unlike whitening, the transformation scales all distances by the same factor."""
    features_ND = correlated(48, 3)
    standard = PhiS.fit([features_ND])
    ratio_MN = torch.cdist(features_ND[:9], features_ND[9:]) / torch.cdist(
        standard(features_ND)[:9], standard(features_ND)[9:]
    )
    torch.testing.assert_close(ratio_MN, standard.scale.expand(ratio_MN.shape), atol=0, rtol=1e-3)


def test_maps_are_standardised_cell_by_cell():
    features_ND = correlated(12, 4)
    standard = PhiS.fit([features_ND])
    maps_BDhw = features_ND[:30].view(2, 3, 5, 12).permute(0, 3, 1, 2)
    expected_BDhw = standard(features_ND[:30]).view(2, 3, 5, 12).permute(0, 3, 1, 2)
    torch.testing.assert_close(standard(maps_BDhw), expected_BDhw)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 72, 128, 256, 384, 512, 640, 768, 1024])
def test_hadamard_matrices_are_signs_with_orthogonal_rows(order: int):
    matrix = hadamard(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 28, 100])
def test_an_order_without_a_known_matrix_is_refused(order: int):
    with pytest.raises(ValueError, match="no Hadamard matrix"):
        hadamard(order)


@pytest.mark.parametrize("features", [[], [torch.ones(5, 4)]])
def test_features_that_say_nothing_are_refused(features: list[Tensor]):
    with pytest.raises(ValueError, match="standardise"):
        PhiS.fit(features)
