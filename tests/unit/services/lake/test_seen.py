"""A batch shows its progress before its first part is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from samclip import progress

from services.lake import seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "last"), [(500, ("images", 500, 300)), (None, ("1 of 3 parts, images", None, 300))]
)
def test_images_of_parts_that_are_not_done_are_counted(
    small_ray: None, monkeypatch: pytest.MonkeyPatch, images: int | None, last: tuple[Any, ...]
) -> None:
    import ray

    counted = 0

    @contextmanager
    def bar(what: str, total: Any, wanted: bool) -> Iterator[object]:
        nonlocal shown
        shown = what, total

        def advance(count: int, said: str = what) -> None:
            nonlocal counted, shown
            counted, shown = counted + count, (said, total)

        yield advance

    shown: tuple[str, Any] = ("", 0)
    monkeypatch.setattr(seen, "TELL_S", 0.1)
    monkeypatch.setattr(progress, "bar", bar)
    with seen.watched({0: 200}, 3, images, {}) as actor:
        ray.get(actor.tell.remote(1, 120, False))
        ray.get(actor.tell.remote(1, 100, False))  # it begins again
    assert (*shown, counted) == last
    with seen.watched({}, 1, 1, {}) as actor:
        ray.kill(actor)  # nobody counts, and the batch goes on
