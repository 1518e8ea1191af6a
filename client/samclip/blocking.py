"""One code for asynchronous and blocking classes."""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Wrap a coroutine method for a blocking session, in which it ends without suspending."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            method(self, *args, **kwargs).send(None)
        except StopIteration as done:
            return done.value
        raise RuntimeError("a blocking call was suspended: its session is not a blocking one")

    return call


def blocking_stream(
    method: Callable[Concatenate[Any, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """Wrap a method that yields for a blocking session, in which it never suspends."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(self, *args, **kwargs)
        try:
            while True:
                try:
                    items.__anext__().__await__().send(None)
                except StopIteration as done:
                    yield done.value
                except StopAsyncIteration:
                    return
        finally:
            with suppress(StopIteration):
                items.aclose().__await__().send(None)

    return call
