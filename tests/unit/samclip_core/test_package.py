"""Public names, and imports without torch."""

import typing

import pytest

import samclip_core


def test_public_names_are_sorted_and_exist() -> None:
    assert samclip_core.__all__ == sorted(samclip_core.__all__)
    for name in samclip_core.__all__:
        value: typing.Any = getattr(samclip_core, name)
        assert value.__name__ == name


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sam'"):
        samclip_core.Sam  # noqa: B018
