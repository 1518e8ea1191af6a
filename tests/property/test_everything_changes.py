"""Replaying what changed in a search gives what it found."""

from hypothesis import given
from hypothesis import strategies as st

from samclip_core.answers.everything import Changes


class Item:
    """Something found; equal only to itself, as ``Found`` is."""


@given(looks=st.lists(st.sets(st.integers(0, 8)), max_size=12))
def test_replay(looks: list[set[int]]) -> None:
    items, changes, shown, used = [Item() for _ in range(9)], Changes(), {}, set()
    for look in looks:
        found = [items[index] for index in sorted(look)]
        new, withdrawn = changes.since(found)
        for number in withdrawn:
            del shown[number]
        assert not new.keys() & used  # a number is used once
        used |= new.keys()
        shown |= new
        assert len(shown) == len(found)
        assert set(shown.values()) == set(found)
