"""SamClip on tiny random checkpoints: answers, invariance, precision and threads."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samclip_core.answers.areas import Area
from samclip_core.answers.examples import Example
from samclip_core.answers.find_alike import ExamplePrompt
from samclip_core.answers.proxy_attention import attend
from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import Terms, run
from samclip_core.config import TaskSizes
from samclip_core.errors import (
    CheckpointError,
    InvalidLabels,
    InvalidPrompt,
    InvalidRequest,
)
from samclip_core.io import checkpoint
from samclip_core.io.masks import find_runs
from samclip_core.model import SamClip
from samclip_core.types import Prompt, TextPrompt
from tests.close import assert_close
from tests.tiny import make_tiny_checkpoint

ARRAYS = ("sam_Dhw", "clip_dense_Dhw", "clip_pooled_D")
POINT = Prompt(points=((20, 30),))


@pytest.fixture(scope="module", params=["edge", "vit-b"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SamClip:
    directory = tmp_path_factory.mktemp("checkpoints") / request.param
    return SamClip.load(make_tiny_checkpoint(directory, request.param))


def _picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return smooth blobs of colour: noise would look the same everywhere."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


PICTURES = [_picture(90, 150, 0), _picture(128, 128, 1), _picture(300, 40, 2), _picture(7, 200, 3)]


def test_encode(model: SamClip) -> None:
    features, config = model.encode(PICTURES[0]), model.config
    assert features.sam_Dhw.shape == (config.embed_dim, config.grid, config.grid)
    assert features.clip_dense_Dhw.shape[0] == config.text_dim
    assert features.clip_pooled_D.shape == (config.text_dim,)
    assert {getattr(features, name).dtype for name in ARRAYS} == {np.dtype(np.float32)}
    assert features.dtype == model.dtype == "float32"
    assert model.encode(features) is features


@pytest.mark.parametrize("size", [64, 160])
def test_another_side(model: SamClip, size: int) -> None:
    features, own = model.encode(PICTURES[0], size), model.encode(PICTURES[0])
    assert features.geometry.size == model.prepare(PICTURES[0], size).geometry.size == size
    cells = own.clip_dense_Dhw.shape[-1] * size // model.config.image_size
    assert features.clip_dense_Dhw.shape == (model.config.text_dim, cells, cells)
    assert 0.5 < features.clip_pooled_D @ own.clip_pooled_D < 0.99999
    with pytest.raises(InvalidRequest, match=f"in a frame of {size} pixels, and masks need 128"):
        model.segment(features, [POINT])


def test_each_task_uses_its_own_side(tmp_path: Path) -> None:
    sizes = TaskSizes(classify=64, semantic=96, retrieval=80)
    model = SamClip.load(make_tiny_checkpoint(tmp_path / "tiny", "vit-b", task_sizes=sizes))
    picture, labels = PICTURES[0], ["dog", "cat", "grass"]
    at = {size: model.encode(picture, size) for size in model.config.sizes}
    assert list(at) == [128, 64, 96, 80]
    assert_close(model.classify(picture, labels), model.classify(at[64], labels))
    assert model.classify(picture, labels) != model.classify(at[80], labels)
    np.testing.assert_allclose(model.embed_image(picture), model.embed_image(at[80]), atol=1e-6)
    for refine, size in ((False, 96), (True, 128)):
        found = model.segment_text(picture, labels, refine=refine).label_map_HW
        expected = model.segment_text(at[size], labels, refine=refine).label_map_HW
        assert (found == expected).mean() > 0.999
    heat = model.explain(picture, "dog", labels[1:])
    again = model.explain(at[96], "dog", labels[1:])
    np.testing.assert_allclose(heat.levels_HW, again.levels_HW, atol=1)  # of 255
    assert model.segment(picture, [POINT])
    assert model.segment_everything(picture, 2, labels) is not None


@pytest.mark.parametrize("dtype", ["int8", "int8+bfloat16"])
def test_int8_is_named_with_its_calibration(tiny_checkpoint: Path, tmp_path: Path, dtype) -> None:
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    engine = SamClip.load(directory, engine="torch").engine
    engine.dtype = dtype
    found = []
    for graph in (b"one calibration", b"another"):
        (directory / checkpoint.INT8_GRAPH).write_bytes(graph)
        checkpoint.seal_graphs(directory, 20, {checkpoint.INT8_GRAPH: {}})
        found.append(SamClip(directory, engine).dtype)
        assert found[-1] == f"{dtype}:{hashlib.sha256(graph).hexdigest()[:8]}"
    assert found[0] != found[1]


def test_classify(model: SamClip) -> None:
    scores = model.classify(PICTURES[0], ["dog", "cat", "grass"])
    assert sum(score.score for score in scores) == pytest.approx(1, abs=1e-5)
    text_1D = model.embed_text([model.config.templates[0].replace("{}", scores[0].label)])
    cosine = float(text_1D[0] @ model.embed_image(PICTURES[0]))
    assert scores[0].similarity == pytest.approx(cosine, abs=1e-5)
    assert_close(model.classify(PICTURES[0], ["dog", "cat", "grass"], top_k=1), scores[:1])


def test_a_lone_string_is_one_text_and_not_its_letters(model: SamClip) -> None:
    assert model.embed_text("cat").shape == model.embed_text(["cat"]).shape
    photo = "a photo of a {}."
    found = model.classify(PICTURES[0], "cat", photo)
    assert_close(found, model.classify(PICTURES[0], ["cat"], [photo]))
    assert [region.label for region in model.segment_text(PICTURES[0], "cat").regions] == ["cat"]
    everything = model.segment_everything(PICTURES[0], 2, "cat")
    assert {mask.label for mask in everything} <= {"cat"}


@pytest.mark.parametrize("refine", [False, True])
def test_segment_text_labels_every_pixel(model: SamClip, refine: bool) -> None:
    found = model.segment_text(PICTURES[0], ["dog", "cat", "grass"], refine=refine)
    assert found.label_map_HW.shape == (90, 150)
    assert set(np.unique(found.label_map_HW)) <= {0, 1, 2}
    assert sum(region.area for region in found.regions) == 90 * 150


@pytest.mark.parametrize("refine", [False, True])
def test_only_one_head_reads_the_map_that_sam_attends(model: SamClip, refine: bool) -> None:
    features, labels = model.encode(PICTURES[0]), ["dog", "cat", "grass"]
    text_LD, scale = model.class_embeddings(labels), model.config.logit_scale
    found = model.segment_text(features, labels, refine=refine).label_map_HW
    if refine:
        terms = Terms.of(model.sam_head, 64)
        steps = SegmentText(labels, refine=True).steps(features, text_LD, model.config, terms)
    else:
        attended = attend(features, model.config.fitted.attention)
        steps = SegmentText(labels).of_dense_map(attended, text_LD, scale)
    expected = run(steps, model.sam_head)
    assert (found == expected.label_map_HW).mean() > 0.999


def test_segment_everything(model: SamClip) -> None:
    masks = model.segment_everything(PICTURES[0], labels=["dog", "cat"], min_label_score=0.0)
    assert masks
    for mask in masks:
        assert mask.mask_HW.shape == (90, 150)
        assert mask.label in ("dog", "cat")
    assert {mask.label for mask in model.segment_everything(PICTURES[0], 2)} <= {""}


def test_lower_precision_is_close_and_its_pooled_embedding_has_length_1(
    tiny_checkpoint: Path,
) -> None:
    model = SamClip.load(tiny_checkpoint, dtype="bfloat16")
    full, half = (m.encode(PICTURES[0]) for m in (SamClip.load(tiny_checkpoint), model))
    assert half.clip_pooled_D.dtype == np.float32
    assert half.clip_pooled_D @ full.clip_pooled_D > 0.99
    assert not np.array_equal(half.sam_Dhw, full.sam_Dhw)
    for picture in PICTURES:
        vector_D = model.embed_image(picture)
        assert np.linalg.norm(vector_D) == pytest.approx(1, abs=1e-6)
        (score,) = model.classify(picture, ["dog"])
        text_D = model.class_embeddings(["dog"])[0]
        assert score.similarity == pytest.approx(float(text_D @ vector_D), abs=1e-6)


def test_what_cannot_be_loaded(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="samclip train"):
        SamClip.load(tmp_path)
    with pytest.raises(CheckpointError, match="not support int8"):
        SamClip.load(tiny_checkpoint, dtype="int8")


def test_areas_are_classified_by_their_embedding(model: SamClip) -> None:
    features = model.encode(PICTURES[0], model.config.size_of("semantic"))
    mask_HW = np.zeros((90, 150), np.bool_)
    mask_HW[20:60, 30:90] = True
    areas = [Area(box=(30, 20, 90, 60)), Area.of_mask(mask_HW)]
    rankings = model.classify_areas(features, areas, ["a cat", "a dog"])
    text_LD = model.class_embeddings(["a cat", "a dog"])
    for area, ranking in zip(areas, rankings, strict=True):
        area_D = model.embed_image(features, area=area)
        assert np.linalg.norm(area_D) == pytest.approx(1, abs=1e-5)
        cosines = dict(zip(["a cat", "a dog"], text_LD @ area_D, strict=True))
        assert {s.label: pytest.approx(s.similarity, abs=1e-5) for s in ranking} == cosines
    with pytest.raises(InvalidRequest, match="area 1: the mask has"):
        model.classify_areas(features, [areas[0], Area.of_mask(mask_HW.T)], ["a cat"])


def test_examples_of_several_images_in_order(model: SamClip) -> None:
    masks = [np.zeros(picture.shape[:2], np.bool_) for picture in PICTURES]
    for mask_HW in masks:
        mask_HW[4:20, 4:20] = True
    places = [find_runs(masks[0]), Prompt(box=(4, 4, 20, 20)), find_runs(masks[1])]
    images = [PICTURES[0], PICTURES[0], PICTURES[1]]
    found = model.example_vectors([*map(Example, images, places)])
    for (clip_D, sam_E, area), image, place in zip(found, images, places, strict=True):
        (alone,) = model.example_vectors([Example(image, place)])
        np.testing.assert_allclose(clip_D, alone.clip_D, atol=1e-6)
        np.testing.assert_allclose(sam_E, alone.sam_E, atol=1e-6)
        assert 0 < area == alone.area < 1
    np.testing.assert_allclose(
        found[2].clip_D, model.embed_image(PICTURES[1], area=Area.of_mask(masks[1])), atol=1e-5
    )


def test_objects_like_an_example_beside_texts(model: SamClip) -> None:
    features = model.regions(PICTURES[0])
    regions = features.regions
    mask_HW = features.geometry.logits_to_original(regions.logits(0)) > 0
    own, text = Example(PICTURES[0], find_runs(mask_HW)), TextPrompt("dog")
    for image in (PICTURES[0], PICTURES[0].copy()):  # the same array, or another one
        prompts = ["dog", ExamplePrompt([replace(own, image=image)]), text]
        words, alike, _ = model.find(PICTURES[0], prompts, min_score=0.0)
        np.testing.assert_array_equal(alike[0].logits_hw > 0, regions.levels_Rss[0] > 0)
        assert len(words) == len(model.find(PICTURES[0], ["dog", text], 0.0)[0])
    assert model.find(PICTURES[0], [ExamplePrompt([own])], min_score=1.0) == [[]]
    (both,) = model.find(PICTURES[0], [ExamplePrompt([own], "dog")], min_score=0.0)
    assert {mask.label for mask in both} == {"dog"}
    wrong = ExamplePrompt([own, Example(PICTURES[1], Prompt(box=(0, 0, 999, 9)))])
    with pytest.raises(
        InvalidPrompt, match=r"prompt 1: example 1: box .+ beyond the image of 128×128"
    ):
        model.find(PICTURES[0], ["dog", wrong])
    with pytest.raises(InvalidPrompt, match=r"prompt 1 is nan: expected a text"):
        model.find(PICTURES[0], ["dog", float("nan")])  # an empty cell of a table
    with pytest.raises(InvalidLabels, match=r"a label is nan"):
        model.classify(PICTURES[0], ["dog", float("nan")])
