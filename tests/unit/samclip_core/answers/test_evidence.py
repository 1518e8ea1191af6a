"""Texts beside other words, and the numbers of a text and a region."""

import numpy as np
import pytest

from samclip_core.answers.dense import BACKGROUND_WORDS
from samclip_core.answers.evidence import BESIDE, SAME_MEANING, Compared, Evidence, Words, log_sums
from samclip_core.answers.vocabularies import names_of
from samclip_core.calibration import RegionWeights
from samclip_core.geometry import Geometry
from tests.fakes import FakeSamHead, features_of, with_regions


def of(*texts: str, vectors: np.ndarray | None = None) -> Words:
    """Return texts and words whose vectors are all at right angles, unless given."""
    count = len(texts) + len(BESIDE)
    return Words.of(texts, np.eye(count) if vectors is None else vectors, 20.0)


def left_out(words: Words, text: str) -> set[str]:
    row = words.row[text]
    counts = [*words.background_XK[row], *words.names_XV[row]]
    return {word for word, count in zip(BESIDE, counts, strict=True) if not count}


def test_words_that_share_a_part_with_a_text_do_not_count_beside_it() -> None:
    words = of("Wine_glass", "a dog", "texture", "another one")
    assert left_out(words, "Wine_glass") == {"wine glass"}
    assert left_out(words, "another one") == set()  # "window-other" is a window
    assert left_out(words, "a dog") == {"dog", "hot dog"}
    assert left_out(words, "texture") == {"blurred texture"}


def test_words_that_are_near_to_a_text_do_not_count_beside_it() -> None:
    vectors = np.eye(2 + len(BESIDE))
    for name, distance in (("couch", 0.9 * SAME_MEANING), ("chair", 1.1 * SAME_MEANING)):
        row = 2 + BESIDE.index(name)
        vectors[row] *= np.sqrt(1 - (1 - distance) ** 2)
        vectors[row, 0] = 1 - distance
    assert left_out(of("sofa", "cat", vectors=vectors), "sofa") == {"couch"}


def test_the_evidence_is_relative_to_the_mean_of_the_background_words() -> None:
    words = of("grass", "dog")
    grass_D, dog_D = words.relative_XD
    count = len(BACKGROUND_WORDS)
    assert dog_D @ words.text_XD[1] == pytest.approx(20)
    assert words.background_KD @ dog_D == pytest.approx([-20 / count] * count)
    beside = BACKGROUND_WORDS.index("grass")
    assert words.background_KD[beside] @ grass_D == pytest.approx(0, abs=1e-6)


def test_the_sums_are_those_of_the_exponentials_that_count() -> None:
    logits_KN = np.array([[1.0, 300], [2, -300], [3, 299]])
    counts_XK = np.array([[True, True, False], [False, True, True]])
    expected = [[np.logaddexp(1, 2), 300], [np.logaddexp(2, 3), 299]]
    np.testing.assert_allclose(log_sums(counts_XK, logits_KN), expected, rtol=1e-6)


CUP, PLATE, OTHER = range(3)
SCALE = 20.0


def compared(classes_hw: np.ndarray, objects_hw: np.ndarray) -> Compared:
    """Compare "cup" and "plate" with objects in 16×8 cells; all other words are something else."""
    features = features_of(Geometry(640, 1280, 128), classes_hw, 3)
    features = with_regions(features, FakeSamHead(objects_hw, 0.9))
    classes = [CUP, PLATE, *(CUP if word == "cup" else OTHER for word in BESIDE)]
    words = Words.of(["cup", "plate"], np.eye(3)[classes], SCALE)
    return Compared.of(Evidence.of(features, words, 16), features.regions)


def scene() -> Compared:
    """Return half of a cup in the corner, and a plate in the middle with as much of the table."""
    classes_hw, objects_hw = np.full((16, 16), OTHER), np.zeros((16, 16), int)
    classes_hw[:2, :4], classes_hw[3:5, 6:8] = CUP, PLATE
    objects_hw[:2, :2], objects_hw[3:5, 6:10] = 1, 2
    return compared(classes_hw, objects_hw)


def test_the_numbers_of_a_text_and_a_region() -> None:
    found = scene()
    names = len(names_of("coco"))
    cup_2, plate_2 = found.numbers("cup"), found.numbers("plate")
    # Evidence: 1 in the text's cells, -1 in others' (the background words), 0 in the other text's.
    expected = [0.9, 0.95, np.log(4 / 128), SCALE * (1 - (4 - 116) / 124), 0, 1]
    expected[4] = -np.log1p((names - 1) * np.exp(-SCALE))
    assert cup_2[0] == pytest.approx(expected, abs=0.1)
    contrast = SCALE * ((4 - 4) / 8 - -112 / 120)
    mixed = -np.log1p(names)  # as near to the table as to a plate
    assert plate_2[1] == pytest.approx([0.9, 0.95, np.log(8 / 128), contrast, mixed, 0], abs=0.1)


def test_the_weights_and_the_quality_are_those_of_the_numbers() -> None:
    found = scene()
    weights = RegionWeights(
        predicted_iou=1, stability=2, log_area=3, contrast=4, log_probability=5, border=6
    )
    np.testing.assert_allclose(
        found.log_odds(weights, "plate"), found.numbers("plate") @ np.arange(1, 7), rtol=1e-5
    )
    contrast_2 = np.maximum(found.numbers("plate")[:, 3], 0)
    np.testing.assert_allclose(
        np.exp(found.log_quality("plate")), 0.9 * 0.95 * contrast_2, rtol=1e-3, atol=1e-30
    )


def test_a_region_that_is_the_whole_picture_has_finite_numbers() -> None:
    whole_hw = np.zeros((16, 16), int)
    whole_hw[:8] = 1
    found = compared(np.full((16, 16), CUP), whole_hw)
    numbers_16 = found.numbers("cup")
    assert np.isfinite(numbers_16).all()
    assert numbers_16[0, 3] == pytest.approx(0, abs=1e-2)
    assert numbers_16[0, 5] == 1
