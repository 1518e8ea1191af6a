import numpy as np
import pytest

from samclip_core.answers.dense import BACKGROUND_WORDS
from samclip_core.answers.evidence import BESIDE, SAME, Words, log_sums
from samclip_core.answers.vocabularies import names_of

NAMES = names_of("coco")


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
    for name, distance in (("couch", 0.9 * SAME), ("chair", 1.1 * SAME)):
        row = 2 + BESIDE.index(name)
        vectors[row] *= np.sqrt(1 - (1 - distance) ** 2)
        vectors[row, 0] = 1 - distance
    assert left_out(of("sofa", "cat", vectors=vectors), "sofa") == {"couch"}


def test_background_words_are_there_whatever_is_asked() -> None:
    words = of(" ".join(BACKGROUND_WORDS), *BACKGROUND_WORDS)
    assert words.background_XK.any(axis=1).all()
    assert words.background_XK[0].all()


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
