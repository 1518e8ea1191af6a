"""The client's public names are exported, sorted and documented."""

import inspect
import re

import samclip
from samclip import errors, types

from tests.checkout import ROOT


def test_public_names_are_sorted_and_exported() -> None:
    assert samclip.__all__ == sorted(samclip.__all__)
    for name in samclip.__all__:
        assert inspect.getdoc(getattr(samclip, name)), name


def test_every_value_and_error_is_exported() -> None:
    for module in (types, errors):
        for name, found in vars(module).items():
            if inspect.isclass(found) and found.__module__ == module.__name__:
                assert name in samclip.__all__, name


def test_the_package_is_typed_and_versioned() -> None:
    assert (ROOT / "client/samclip/py.typed").exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+", samclip.__version__)
