"""The tables that ``samclip batch`` writes, made without a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet


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
            "samclip.schema": "1",
        }
    )
    for number, start in enumerate(range(0, len(ids), per_part)):
        path = folder / "images" / f"part-{number:05d}.parquet"
        parquet.write_table(table.slice(start, per_part), path)
    return ids
