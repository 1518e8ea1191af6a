"""Our SAM head against SamPredictor: every kind of prompt, several aspect ratios, SAM's size."""

from itertools import pairwise

import numpy as np
import pytest

from tests.parity.comparison import (
    LOGITS_TOLERANCE,
    ask_official,
    assert_same_answer,
    prompts,
)

SIZES = [(512, 512), (427, 640), (640, 130), (33, 300), (1100, 1600)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_embedding_and_masks_equal_sam_predictors(small, photograph, size):
    image = photograph(*size)
    small.predictor.set_image(image)
    expected = small.predictor.get_image_embedding()[0].numpy()
    assert expected.std() > 0.5
    features = small.model.encode(image)
    np.testing.assert_allclose(features.sam_Dhw, expected, atol=1e-4, rtol=0)
    _, _, earlier_1hw = small.predictor.predict(
        point_coords=np.array([[size[1] / 2, size[0] / 2]]),
        point_labels=np.array([1]),
        multimask_output=False,
    )
    asked = prompts(*size, earlier_1hw[0])
    for multimask in (True, False):
        answers = small.model.segment(features, asked, multimask)
        assert len(answers) == len(asked)
        for prompt, answer in zip(asked, answers, strict=True):
            assert len(answer.masks_MHW) == (3 if multimask else 1)
            assert_same_answer(answer, ask_official(small.predictor, prompt, multimask))
        for one, other in pairwise(answers):  # otherwise swapped prompts would go undetected
            assert np.abs(one.logits_Mhw - other.logits_Mhw).max() > 100 * LOGITS_TOLERANCE
        assert any(0.01 < answer.masks_MHW.mean() < 0.99 for answer in answers)
