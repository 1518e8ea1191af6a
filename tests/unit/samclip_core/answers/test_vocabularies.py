"""Labels in the words of people, and the built-in vocabularies."""

import pytest

from samclip_core.answers.vocabularies import labels_or_names, names_of, readable
from samclip_core.errors import InvalidLabels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("person", "person"),
        ("tree-merged", "tree"),
        ("sky-other-merged", "sky"),
        ("wall-brick", "brick wall"),
        ("wall-other-merged", "wall"),
        ("floor-wood", "wood floor"),
        ("window-blind", "window blind"),
        ("playingfield", "playingfield"),
        ("traffic_light", "traffic light"),
        ("t-shirt", "t-shirt"),
        ("mother-in-law", "mother-in-law"),
        ("-other", "-other"),
        ("a brown dog", "a brown dog"),
    ],
)
def test_names_are_said_as_people_say_them(name: str, expected: str) -> None:
    assert readable(name) == expected


def test_the_vocabularies_have_the_names_of_their_data_sets_in_plain_words() -> None:
    coco, lvis = names_of("coco"), names_of("lvis")
    assert (len(coco), coco[0], coco[-1]) == (133, "person", "rug")
    assert (len(lvis), lvis[0], lvis[-1]) == (1203, "aerosol can", "zucchini")
    assert coco[-2] == "wall"
    for names in (coco, lvis):
        assert len(set(names)) == len(names)
        assert all(name == name.strip() != "" for name in names)


def test_labels_or_a_vocabulary_but_not_both() -> None:
    assert labels_or_names(["dog"], "") == ["dog"]
    assert labels_or_names([], "coco") == names_of("coco")
    assert labels_or_names([], "") == []
    with pytest.raises(InvalidLabels, match="exclude each other"):
        labels_or_names(["dog"], "coco")
    with pytest.raises(InvalidLabels, match="choose one of coco, lvis"):
        labels_or_names([], "imagenet")
