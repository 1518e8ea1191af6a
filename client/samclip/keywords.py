"""Errors for unknown keyword arguments that list the known ones."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


def names_its_keywords(cls: C) -> C:
    """Decorate a class: an unknown keyword raises a TypeError that lists the known ones."""
    for name, method in list(vars(cls).items()):
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            setattr(cls, name, _checked(method))
    return cls


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    _, *parameters = inspect.signature(method).parameters.values()  # without self
    known = [parameter.name for parameter in parameters if parameter.kind in kinds]

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        unknown = ", ".join(sorted(kwargs.keys() - known))
        if unknown:
            constructed = type(args[0]).__name__
            name = constructed if method.__name__ == "__init__" else method.__name__
            raise TypeError(f"{name} has no keyword {unknown}: use {', '.join(known) or 'none'}")
        return method(*args, **kwargs)

    return call
