"""A finished batch as a data set of COCO, made from its tables one part after another."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq
from samclip.cli.data_sets import UNNAMED
from samclip.mask_codecs import Encoded
from samclip.masks import Mask

from services.lake.plan import Plan
from services.lake.tables import IMAGES, part_name, writing

ROWS_AT_ONCE = 64
COCO = "coco.json"


def check(work: Mapping[str, Any]) -> None:
    """Raise ValueError if a batch of this work has no masks."""
    if not (work["text"] or work["everything"]):
        raise ValueError("coco needs masks: give --text or --everything")


def write(plan: Plan) -> None:
    """Write one document in COCO's format for instance segmentation; masks are compressed RLE."""
    work = plan.values["work"]
    numbers = {name: n for n, name in enumerate(dict.fromkeys([*work["text"], *work["labels"]]), 1)}
    with (
        writing(plan.folder, COCO) as path,
        path.open("w") as file,
        tempfile.TemporaryFile("w+") as annotations,
    ):
        file.write('{"images": [')
        images = found = 0
        for row in _rows(plan, ["id", "width", "height", "masks"]):
            masks, images = row.pop("masks"), images + 1
            image = {"file_name": row.pop("id"), **row, "id": images}
            file.write(f"{',' if images > 1 else ''}\n{json.dumps(image)}")
            for mask in masks:
                found += 1
                number = numbers.setdefault(mask["label"] or UNNAMED, len(numbers) + 1)
                about = _mask(mask).to_coco(image_id=images, category_id=number)
                one = json.dumps({"id": found, **about})
                annotations.write(f"{',' if found > 1 else ''}\n{one}")
        file.write('],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        categories = [{"id": n, "name": name} for name, n in numbers.items()]
        file.write(f'],\n"categories": {json.dumps(categories)}}}\n')


def _rows(plan: Plan, columns: list[str]) -> Iterator[dict[str, Any]]:
    for number in range(plan.count):
        with plan.folder.open(f"{IMAGES}/{part_name(number)}.parquet") as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()


def _mask(row: Mapping[str, Any]) -> Mask:
    height, width = row["size"]
    data = Encoded("rle", row["counts"], height, width)
    named = {name: row[name] for name in _NAMES}
    return Mask(data, tuple(row["box"]), **named)


_NAMES = ("area", "predicted_iou", "stability_score", "label", "label_score")
