"""Concepts in the library: labels and texts of every method."""

from dataclasses import replace

import numpy as np
import pytest

from samclip_core.answers import concepts
from samclip_core.answers.examples import Example, Vectors
from samclip_core.answers.zero_shot import unit
from samclip_core.config import SamClipConfig
from samclip_core.errors import CheckpointError, InvalidLabels, InvalidPrompt, NotFound
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests.close import assert_close
from tests.in_process import png

MUG = "concept:my mug"
PLACE = Prompt(box=(5, 0, 20, 30))
RANDOM = np.random.default_rng(0)


def vectors(number: int) -> list[Vectors]:
    made = ((unit(RANDOM.normal(size=6)), unit(RANDOM.normal(size=4))) for _ in range(number))
    return [Vectors(*pair) for pair in made]


def test_a_concept_is_a_label_and_a_text_of_every_method(tiny_model: SamClip) -> None:
    image = png()
    with pytest.raises(NotFound, match="no concept 'my mug'"):
        tiny_model.classify(image, ["a dog", MUG])
    tiny_model.add_concept("my mug", [Example(image, PLACE), Example(png(9), PLACE, True)])
    found = tiny_model.classify(image, ["a dog", MUG])
    assert {score.label for score in found} == {"a dog", MUG}
    assert tiny_model.classify(image, [MUG])[0].similarity == pytest.approx(
        next(score.similarity for score in found if score.label == MUG), abs=1e-6
    )
    templates = tiny_model.classify(image, [MUG], ["a painting of a {}"])
    assert_close(templates, tiny_model.classify(image, [MUG]))
    assert tiny_model.find(image, [MUG], min_score=0) is not None
    assert tiny_model.segment_text(image, ["a dog", MUG]).label_map_HW.max() <= 1
    assert tiny_model.explain(image, MUG).levels_HW.any()
    before = tiny_model.explain(image, MUG)
    tiny_model.add_concept("my mug", [Example(png(240), PLACE)])
    assert tiny_model.explain(image, MUG).high != before.high


@pytest.mark.parametrize("name", ["", " mug", "mug ", "a\tmug", "x" * 101, "concept:mug"])
def test_names_are_checked(tiny_model: SamClip, name: str) -> None:
    with pytest.raises(InvalidLabels, match="is no name of a concept"):
        tiny_model.add_concept(name, [Example(png(), PLACE)])
    with pytest.raises(InvalidPrompt, match="not negative"):
        tiny_model.add_concept("mug", [Example(png(), PLACE, negative=True)])


def test_labels_keep_their_order() -> None:
    labels = ["x", "concept:b", "y", "concept:a"]
    rows = {name: np.full(2, number) for number, name in enumerate("ab", start=7)}
    assert (concepts.names_in(labels), concepts.texts_in(labels)) == (["b", "a"], ["x", "y"])
    made = concepts.among_texts(labels, rows, np.array([[1, 1], [2, 2]]))
    assert made[:, 0].tolist() == [1, 8, 2, 7]


def test_a_concept_is_like_its_examples_and_unlike_the_negative_ones() -> None:
    given = vectors(5)
    plain, with_negative = (
        concepts.of_examples(given, [False] * 3 + [negative] * 2, None)
        for negative in (False, True)
    )
    for part in (0, 1):
        assert np.linalg.norm(with_negative[part]) == pytest.approx(1, abs=1e-5)
        unwanted = np.mean([one[part] for one in given[3:]], axis=0)
        assert with_negative[part] @ unwanted < plain[part] @ unwanted


def test_what_images_have_in_common_is_taken_out() -> None:
    common_D, own_D = np.eye(6, dtype=np.float32)[:2]
    image_D = unit(3 * common_D + own_D)
    space = concepts.space_of(0.9 * common_D, -0.5)
    moved_D = concepts.to_texts(image_D, space)
    assert np.linalg.norm(moved_D) == pytest.approx(1, abs=1e-5)
    assert moved_D @ own_D > 0.9
    assert moved_D @ common_D < image_D @ common_D - 0.5


def test_a_space_of_another_width_is_refused(tiny_model: SamClip) -> None:
    space = concepts.space_of(np.ones(tiny_model.config.text_dim), 0.0)
    assert tiny_model.config.calibration is not None
    for given, words in ((space, ""), (concepts.space_of(np.ones(3), 0.0), "float16")):
        calibration = replace(tiny_model.config.calibration, concepts=given)
        text = replace(tiny_model.config, calibration=calibration).to_json()
        if words:
            with pytest.raises(CheckpointError, match=words):
                SamClipConfig.from_json(text)
        else:
            assert SamClipConfig.from_json(text).fitted.concepts == space
