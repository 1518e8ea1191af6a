"""Read the images of one part of the sources."""

from collections.abc import Iterator

from services.sources.item import Item, Part, failed
from services.sources.shards import shard_images
from services.sources.tables import json_rows, parquet_rows

_READERS = {"rows": parquet_rows, "lines": json_rows, "shard": shard_images}


def items(part: Part) -> Iterator[Item]:
    """Yield the images of a part, in order.

    Raises no error: if a table or shard cannot be read to its end, the last item says so.
    """
    if part["kind"] == "files":
        yield from (Item(id, path, problem=problem) for id, path, problem in part["files"])
        return
    try:
        yield from _READERS[part["kind"]](part)
    except Exception as error:  # damaged content raises errors of any kind
        what = "shard" if part["kind"] == "shard" else "table"
        found = failed(str(part.get("id") or part["path"]), part["path"], error)
        yield found._replace(problem=f"the {what} cannot be read to its end: {found.problem}")
