"""A photograph shows its latest answer."""

import io
from pathlib import Path

import numpy as np
import pytest
import samclip
from PIL import Image
from samclip import drawing

SIDE = 64


@pytest.fixture
def photo(client: samclip.Client) -> samclip.Photo:
    return client.image(np.full((SIDE, SIDE, 3), 100, np.uint8))


def changed(photo: samclip.Photo, answer: object = None) -> np.ndarray:
    """Return bool H×W: the pixels that differ from the photograph, without the legend."""
    return (np.asarray(photo.show(answer))[:SIDE] != 100).any(axis=2)


def test_without_an_answer_it_shows_itself(photo: samclip.Photo) -> None:
    assert photo.show().size == (SIDE, SIDE)
    assert not changed(photo).any()


def test_it_shows_the_latest_answer(photo: samclip.Photo) -> None:
    (mask,) = photo.segment(boxes=[(4, 6, 30, 40)])
    np.testing.assert_array_equal(changed(photo), mask)
    for ask, labels in (
        (photo.semantic, ["dog", "grass"]),
        (photo.explain, "dog"),
        (photo.panoptic, ["a", "b"]),
        (photo.everything, ["a", "b"]),
    ):
        ask(labels)
        assert changed(photo).all()
        assert photo.show().height > SIDE  # a legend
    photo.classify(["dog", "cat"])
    assert not changed(photo).any()
    assert photo.show().height > SIDE
    both = photo.segment_prompts(
        [samclip.Prompt(box=(0, 0, 4, 4)), samclip.Prompt(box=(9, 9, 20, 20))]
    )
    np.testing.assert_array_equal(changed(photo), np.any([m for ms in both for m in ms], axis=0))
    for _ in photo.stream_everything():
        pass
    assert changed(photo).all()


def test_it_shows_what_it_is_given(photo: samclip.Photo) -> None:
    one, other = photo.segment(boxes=[(4, 6, 30, 40), (40, 40, 50, 50)])
    for given in (one, [one], [one, other]):
        expected_HW = np.any([given] if given is one else given, axis=0)
        np.testing.assert_array_equal(changed(photo, given), expected_HW)


def test_labels_are_in_the_legend_up_to_a_number(photo: samclip.Photo) -> None:
    few = photo.show(photo.everything(["a"], points_per_side=2))
    many = photo.show(photo.everything(["a"], points_per_side=drawing.MOST_NAMES))
    more = photo.show(photo.everything(["a"], points_per_side=2 * drawing.MOST_NAMES))
    assert few.height < many.height == more.height


def test_a_notebook_displays_it(photo: samclip.Photo) -> None:
    photo.segment(boxes=[(4, 6, 30, 40)])
    assert Image.open(io.BytesIO(photo._repr_jpeg_() or b"")).size == (SIDE, SIDE)


def test_a_photograph_by_key_cannot_be_shown(client: samclip.Client, photo: samclip.Photo) -> None:
    photo.embed()
    known = client.by_key(photo.key)
    (mask,) = known.segment(boxes=[(4, 6, 30, 40)])
    assert mask.photograph == b""
    assert known._repr_jpeg_() is None
    with pytest.raises(ValueError, match=r"only a key: make it with client\.image"):
        known.show()


def test_its_name_is_where_it_comes_from(
    client: samclip.Client, photo: samclip.Photo, tmp_path: Path
) -> None:
    path = tmp_path / "dog.png"
    path.write_bytes(photo.encoded)
    assert client.image(path).name == client.image(str(path)).name == str(path)
    assert photo.name == client.image(photo.encoded).name == ""
