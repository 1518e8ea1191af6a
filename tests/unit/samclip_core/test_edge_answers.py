"""What the bundled checkpoint answers about the photograph of a cat."""

from importlib.util import find_spec
from pathlib import Path

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


def test_a_text_is_found_where_it_is_and_refused_where_it_is_not(edge: SamClip, cat: bytes) -> None:
    cats, dogs = edge.find(cat, ["a cat", "a dog"], min_score=0.0)
    assert cats[0].label_score > max(edge.config.sure, dogs[0].label_score)
    assert int(cats[0].mask_HW.sum()) == pytest.approx(106_144, rel=0.05)
    assert edge.find(cat, ["cup", "rocket"]) == [[], []]


@pytest.mark.parametrize("refine", [False, True])
def test_a_label_has_the_pixels_of_its_thing(edge: SamClip, cat: bytes, refine: bool) -> None:
    labels = ["cat", "person", "cup", "motorcycle", "rocket"]
    found = edge.segment_text(cat, labels, background=True, refine=refine).regions[0]
    assert found.label == "cat"
    assert found.score > 0.8
    assert found.area == pytest.approx(121_000, rel=0.05)


def test_the_largest_of_everything_has_its_name(edge: SamClip, cat: bytes) -> None:
    masks = edge.segment_everything(cat, labels=["cat", "person", "cup", "motorcycle", "rocket"])
    assert len(masks) > 30
    assert masks[0].label == "cat"


def test_a_text_turns_the_vector_of_a_picture_towards_itself(edge: SamClip, cat: bytes) -> None:
    text_D = edge.embed_labels(["a dog"])[0]
    plain, combined = (edge.embed_image(cat, with_text=text) @ text_D for text in ("", "a dog"))
    assert combined > plain + 0.1
