from dataclasses import replace

import numpy as np
import pytest

from samclip_core.answers.examples import Example, Vectors
from samclip_core.answers.find_alike import ExamplePrompt, log_odds
from samclip_core.calibration import Alike, Likeness
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from samclip_core.regions import Regions
from samclip_core.types import Prompt
from tests.photographs import draw, instance, jpg, sample
from training.fitting import examples

KINDS = ("cup", "dog", "sky")
WIDTH = 8


def photo(key: str, *kinds: str, things: int | None = None) -> examples.RegionsAndThings:
    """Return a photograph with a region per kind, of which the first ``things`` are outlined.

    Vectors of a kind have a cosine of about 0.9 with each other, and qualities are random.
    """
    random, count = np.random.default_rng([*key.encode()]), len(kinds)
    noise_R8 = random.normal(size=(count, WIDTH)) * 0.15
    vector_R8 = np.eye(WIDTH)[[KINDS.index(kind) for kind in kinds]] + noise_R8
    vector_R8 = (vector_R8 / np.linalg.norm(vector_R8, axis=1, keepdims=True)).astype(np.float16)
    quality_R = random.uniform(0.5, 1, count).astype(np.float32)
    regions = Regions(
        np.zeros((count, 4, 4), np.int8),
        quality_R,
        quality_R,
        np.zeros((count, 4), np.float32),
        np.full(count, 0.1, np.float32),
        vector_R8,
        np.zeros(WIDTH, np.float16),
        vector_R8,
    )
    outlined = kinds[:things]
    vectors = [Vectors(vector_8, vector_8, 0.1) for vector_8 in vector_R8.astype(np.float32)]
    overlap_RM = np.eye(count, dtype=np.float32)[:, : len(outlined)]
    return examples.RegionsAndThings(
        key,
        regions,
        np.array(outlined),
        overlap_RM,
        overlap_RM,
        {
            kind: [(i, vectors[i]) for i, own in enumerate(outlined) if own == kind]
            for kind in outlined
        },
        frozenset(outlined),
    )


def photos() -> list[examples.RegionsAndThings]:
    """Return 20 photographs, half of them with two cups and a dog and half with a dog; and skies.

    Nobody outlines the sky.
    """
    several = [photo(f"a{i}", "cup", "cup", "dog", "sky", things=3) for i in range(10)]
    return several + [photo(f"b{i}", "dog", "sky", "sky", things=1) for i in range(10)]


def test_an_example_is_asked_where_others_like_it_are_and_where_none_are() -> None:
    asked = examples.across(photos())
    assert len(asked.held) == 10 * examples.OTHERS + 20 * examples.OTHERS  # cups, then dogs
    assert len(asked.lacking) == 10 * examples.OTHERS  # cups
    assert all(one.fits_R.any() for one in asked.held)
    assert not any(one.fits_R.any() for one in asked.lacking)


def test_in_its_own_photograph_the_example_is_no_answer() -> None:
    asked = examples.within(photos())
    assert (len(asked.held), len(asked.lacking)) == (20, 20)
    for first, second in zip(asked.held[::2], asked.held[1::2], strict=True):
        for one, itself in ((first, 0), (second, 1)):
            np.testing.assert_array_equal(one.allowed_R, np.arange(4) != itself)
            np.testing.assert_array_equal(one.fits_R, np.arange(4) == 1 - itself)


def test_a_crowd_or_a_small_thing_is_there_but_no_thing_to_find() -> None:
    crowd = replace(photo("c", "sky", things=0), there=frozenset({"cup"}))
    asked = examples.across([photo("a", "cup"), crowd])
    assert (asked.held, asked.lacking) == ([], [])


def test_fitted_weights_find_what_is_alike_and_refuse_the_rest() -> None:
    fitted = examples.fit(photos(), photos())
    assert fitted is not None
    assert min(fitted.across.clip, fitted.across.sam) > 0
    figures = examples.measured(fitted, photos())
    assert figures["examples_across_top1"] == figures["examples_within_top1"] == 1.0
    assert figures["examples_across_top1_by_both"] == 1.0
    assert figures["examples_across_refused"] == pytest.approx(examples.REFUSED_ACROSS, abs=0.03)
    assert figures["examples_within_refused"] == pytest.approx(examples.REFUSED_WITHIN, abs=0.04)
    assert figures["examples_across_found_low"] <= figures["examples_across_found"] == 1.0
    assert (figures["examples_across_held"], figures["examples_across_lacking"]) == (120, 40)


def test_the_least_scores_follow_from_photographs_that_the_model_never_saw() -> None:
    """In those that it was trained on, masks are better, so that all regions score more."""
    seen = [better(photo) for photo in photos()]
    fitted = examples.fit([*seen, *photos()], photos())
    assert fitted is not None
    figures = examples.measured(fitted, photos())
    assert figures["examples_across_refused"] == pytest.approx(examples.REFUSED_ACROSS, abs=0.03)
    assert figures["examples_within_refused"] == pytest.approx(examples.REFUSED_WITHIN, abs=0.04)


def better(photo: examples.RegionsAndThings) -> examples.RegionsAndThings:
    return replace(
        photo, regions=replace(photo.regions, predicted_iou_R=photo.regions.predicted_iou_R + 1)
    )


ANY = Likeness(clip=-1, sam=-1, quality=0, log_area=0, difference=0, offset=0, min_score=0.5)


def test_without_two_things_of_a_name_nothing_is_fitted() -> None:
    single = [photo("a", "cup", "sky", things=1), photo("b", "dog", "sky", things=1)]
    assert examples.fit(single, single) is None
    assert examples.fit(photos(), [photo("a", "cup"), photo("b", "cup")]) is None
    assert "examples_across_top1" not in examples.measured(Alike(within=ANY, across=ANY), single)


def test_a_photograph_is_asked_as_the_model_answers(tiny_model: SamClip) -> None:
    drawing = draw(0)
    things = [instance(drawing.labels_HW == 1, category="dog", iscrowd=0)]
    one = sample("things", encoded=jpg(drawing.image_HW3), info={"instances": things})
    features = tiny_model.regions(one.encoded)
    asked = examples.photo_of(tiny_model, features, one)
    assert asked.iou_RM.shape == (len(features.regions), 1)
    ((index, vectors),) = asked.examples["dog"]
    assert index == 0
    place = Prompt(box=mask_box(drawing.labels_HW == 1))
    prompt = ExamplePrompt([Example(features, place)])
    (found,) = tiny_model.find(features, [prompt], min_score=0.0)
    assert tiny_model.config.fitted.alike is not None
    weights = tiny_model.config.fitted.alike.within
    odds_R = log_odds(weights, features.regions, vectors)
    best_ss = features.regions.levels_Rss[odds_R.argmax()]
    np.testing.assert_array_equal(found[0].logits_hw > 0, best_ss > 0)
    assert found[0].label_score == pytest.approx(float(1 / (1 + np.exp(-odds_R.max()))), abs=1e-5)
