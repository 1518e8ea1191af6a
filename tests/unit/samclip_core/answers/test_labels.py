"""The words of data sets' labels."""

import pytest

from samclip_core.answers.vocabularies import readable


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
