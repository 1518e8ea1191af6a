"""Do the work of a batch on one part: a row per image in its tables, under one stamp."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import samclip
from samclip.types import THUMBNAIL

from samclip_core.model import SamClip
from services.lake.heads import BatchHead
from services.lake.pipeline import Ready, answered
from services.lake.plan import Plan, PlanMismatch, Stamp, read_stamp
from services.lake.tables import (
    FAILURE,
    FAILURES,
    IMAGES,
    Rows,
    images_schema,
    part_name,
    writing,
)
from services.sources.item import UNKNOWN, state
from services.sources.listing import items


class _Worse(Exception):
    """The tables that are there have answers that were not found this time."""


def run_part(
    model: SamClip,
    plan: Plan,
    number: int,
    cpus: int,
    heads: Sequence[BatchHead] = (),
    told: Callable[[int], None] = lambda images: None,
) -> Stamp:
    """Write the tables of a part, unless it is done; return their stamp.

    heads: those of the plan's work, loaded. ``told`` is called with the number of images so far.
    The table of images is written last: where it is whole, the part is done. Raises PlanMismatch,
    and OSError if a table cannot be written.
    """
    there = _there(plan, number)
    if there and plan.is_done(number, there):
        return there
    try:
        return _written(model, plan, number, cpus, heads, told)
    except _Worse as worse:
        (stamp,) = worse.args
        return stamp


def _there(plan: Plan, number: int) -> Stamp | None:
    """Return the stamp of the table that is there, if any. Raises PlanMismatch."""
    if found := read_stamp(plan.folder, number):
        plan.check_stamp(number, found)
    return found


def _written(
    model: SamClip,
    plan: Plan,
    number: int,
    cpus: int,
    heads: Sequence[BatchHead],
    told: Callable[[int], None],
) -> Stamp:
    folder, name, part = plan.folder, part_name(number), plan.part(number)
    states = [] if part["kind"] == "files" else [state(part["path"])]
    if UNKNOWN not in (planned := part.get("state", UNKNOWN), *states) and [planned] != states:
        raise PlanMismatch(
            f"{part['path']} has changed since its rows were listed: give another --out"
        )
    schema = images_schema(plan.values, samclip.__version__)
    with ExitStack() as files:
        to_images = files.enter_context(writing(folder, f"{IMAGES}/{name}.parquet"))
        to_failures = files.enter_context(writing(folder, f"{FAILURES}/{name}.parquet"))
        images = files.enter_context(closing(Rows(to_images, schema)))
        failures = files.enter_context(closing(Rows(to_failures, FAILURE)))
        work, unread = {**plan.values["work"], "heads": heads}, 0
        for count, (ready, answers) in enumerate(answered(model, work, items(part), cpus)):
            told(count)
            if ready.state is not None:
                states.append(ready.state)
            if ready.reason:
                unread += ready.unread
                reason = {"reason": _utf8(ready.reason), "unread": ready.unread}
                failures.add(_origin(ready) | reason)
                continue
            row = _origin(ready) | {"key": ready.key, THUMBNAIL: ready.thumbnail, **answers}
            metadata = ready.item.metadata.items()
            images.add(row | {"metadata": [(_utf8(key), _utf8(text)) for key, text in metadata]})
        stamp = Stamp(plan.digest, tuple(states), images.count, failures.count, unread)
        there = _there(plan, number) if unread else None
        if there and there.unread < unread:
            raise _Worse(there._replace(unread=unread))
        for table in (images, failures):
            table.finish(stamp.metadata())
    return stamp


def _origin(ready: Ready) -> dict[str, Any]:
    return {"id": _utf8(ready.item.id), "source": _utf8(ready.item.source)}


def _utf8(text: str) -> str:
    """Return a text as Parquet stores it: bytes of a name and surrogates of JSON as escapes."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")
