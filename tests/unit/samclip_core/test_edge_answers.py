"""The bundled checkpoint's answers stay as they were when its numbers were fitted."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from samclip_core.model import SamClip


@pytest.fixture(scope="module")
def edge() -> SamClip:
    return SamClip.load("edge", engine="torch", dtype="float32")


@pytest.fixture(scope="module")
def cat() -> bytes:
    found = find_spec("skimage")
    if found is None or found.origin is None:
        pytest.skip("needs the photographs of scikit-image")
    return (Path(found.origin).parent / "data" / "chelsea.png").read_bytes()


def test_texts_are_found_with_the_same_probability(edge: SamClip, cat: bytes) -> None:
    cats, dogs = edge.find(cat, ["a cat", "a dog"])
    assert [mask.label_score for mask in cats] == pytest.approx([0.99950], abs=1e-4)
    assert [mask.label_score for mask in dogs] == pytest.approx([0.9379, 0.9290, 0.9136], abs=2e-3)
    assert int(cats[0].mask_HW.sum()) == pytest.approx(106_144, rel=0.01)
    assert edge.find(cat, ["cup", "rocket"]) == [[], []]


@pytest.mark.parametrize(
    ("refine", "score", "area"), [(False, 0.9850, 119_837), (True, 0.9041, 122_474)]
)
def test_labels_have_the_same_pixels(
    edge: SamClip, cat: bytes, refine: bool, score: float, area: int
) -> None:
    labels = ["cat", "person", "cup", "motorcycle", "rocket"]
    found = edge.segment_text(cat, labels, background=True, refine=refine).regions[0]
    assert (found.label, found.score) == ("cat", pytest.approx(score, abs=1e-3))
    assert found.area == pytest.approx(area, rel=0.01)


def test_everything_has_as_many_masks(edge: SamClip, cat: bytes) -> None:
    masks = edge.segment_everything(cat, labels=["cat", "person", "cup", "motorcycle", "rocket"])
    assert len(masks) == pytest.approx(50, abs=3)
    assert (masks[0].label, masks[0].predicted_iou) == ("cat", pytest.approx(0.7834, abs=1e-3))


def test_a_picture_and_a_text_have_the_same_vector(edge: SamClip, cat: bytes) -> None:
    vector_D = edge.embed_image(cat, with_text="a cat")
    expected_5 = [0.08196, 0.00413, 0.04511, 0.01473, -0.08502]
    np.testing.assert_allclose(vector_D[:5], expected_5, atol=1e-3)
