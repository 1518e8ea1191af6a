"""Plans of batches, and the tables that ``samclip batch`` writes, made without a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from samclip_core.io.folder import Folder
from samclip_core.model import SamClip
from services.lake import worker
from services.lake.plan import Plan
from services.lake.tables import SCHEMA
from services.sources.item import Columns
from services.sources.listing import parts

NOTHING: dict[str, Any] = {
    "embed": False,
    "labels": [],
    "top_k": None,
    "text": [],
    "min_score": None,
    "everything": False,
    "semantic": [],
    "background": False,
    "regions": False,
}


def write(
    folder: Path, vector_ND: np.ndarray, digest: str, per_part: int = 1000, **columns: Any
) -> list[str]:
    """Write the table of images, in parts; return the ids. ``columns`` replace those of the table.

    Row n has the id "n.jpg", the source "photos/n.jpg", the key "n" and the metadata
    {"even": "yes" or "no"}.
    """
    (folder / "images").mkdir(parents=True)
    ids = [f"{n}.jpg" for n in range(len(vector_ND))]
    dimension = vector_ND.shape[1]
    made = {
        "id": ids,
        "source": [f"photos/{id}" for id in ids],
        "key": [f"{n}" for n in range(len(ids))],
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(vector_ND.reshape(-1), pa.float32()), dimension
        ),
        "metadata": pa.array(
            [[("even", "no" if n % 2 else "yes")] for n in range(len(ids))],
            pa.map_(pa.string(), pa.string()),
        ),
        **columns,
    }
    table = pa.table({name: column for name, column in made.items() if column is not None})
    table = table.replace_schema_metadata(
        {
            "samclip.model": "tiny",
            "samclip.digest": digest,
            "samclip.version": "1",
            "samclip.schema": SCHEMA,
        }
    )
    for number, start in enumerate(range(0, len(ids), per_part)):
        path = folder / "images" / f"part-{number:05d}.parquet"
        parquet.write_table(table.slice(start, per_part), path)
    return ids


def state(folder: Path, number: int, **about: object) -> None:
    """Let a part state something else, such as the digest of its ``plan``."""
    path = folder / "images" / f"part-{number:05d}.parquet"
    table = parquet.read_table(path)
    stated = {f"samclip.{name}".encode(): str(value) for name, value in about.items()}
    parquet.write_table(table.replace_schema_metadata(table.schema.metadata | stated), path)


def planned(out: str, photos: str | Path, model: SamClip, size: int = 2, **work: Any) -> Plan:
    """Return the plan of the photographs, which asks for this work."""
    about = {
        "schema": SCHEMA,
        "sources": [str(photos)],
        "columns": ["", ""],
        "work": NOTHING | work,
        "model": worker.described(model),
        "part_size": size,
    }
    listed = parts([str(photos)], Columns(), size)
    return Plan.make(Folder(out), listed, about, lambda count: None)


def files(folder: Folder) -> dict[str, bytes]:
    """Return all files of a result but its plan, and where they lie."""
    found = {
        path.removeprefix(f"{folder.path}/"): folder.system.cat_file(path)
        for path in folder.system.find(folder.path)
    }
    return {name: content for name, content in found.items() if not name.startswith("_plan")}
