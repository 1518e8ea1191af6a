"""The forms of the output: a table, JSON, CSV and pictures."""

import argparse
import base64
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samclip.errors import plain
from samclip.images import encode_image
from samclip.photo import Photo
from samclip.types import Mask, Model

Row = dict[str, Any]
Files = Iterator[tuple[str, Image.Image | bytes]]


@dataclass(frozen=True)
class Answer:
    """Rows of the output and, if they are about masks of an image, one mask per row.

    files: what ``--out`` writes, by relative path, the overlay first; drawn only if asked for.
    name: relative path of the image; ``stem``: the one under which files about it are written.
    about: the cells that all rows begin with, which name the image.
    """

    rows: Sequence[Row]
    masks: Sequence[Mask] = ()
    files: Files = field(default_factory=lambda: iter(()))
    photo: Photo | None = None
    name: str = ""
    stem: str = ""
    about: Row = field(default_factory=dict)

    def rows_with_masks(self) -> list[Row]:
        """Return the rows, each with the run lengths of its mask as ``segmentation``."""
        if not self.masks:
            return list(self.rows)
        pairs = zip(self.rows, self.masks, strict=True)
        return [{**row, "segmentation": mask.rle} for row, mask in pairs]


class Writer:
    """Takes the answers of a command and prints them, as they come or at the end."""

    streams = False
    """Whether answers are printed as they come."""

    def add(self, answer: Answer) -> None:
        """Take one more answer."""

    def fail(self, row: Row) -> None:
        """Take an image's name and its ``error``, which stderr has named as well."""

    def wrote(self, paths: Sequence[Path]) -> None:
        """Name written files: on stderr, so that stdout has one form."""
        for path in paths:
            print(plain(str(path)), file=sys.stderr)

    def close(self, model: Model | None) -> None:
        """Print the rows that have not been printed yet."""


class Table(Writer):
    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._paths: list[Path] = []
        self._answered = False

    def add(self, answer: Answer) -> None:
        self._answered = True
        self._rows += answer.rows

    def wrote(self, paths: Sequence[Path]) -> None:
        self._paths += paths

    def close(self, model: Model | None) -> None:
        if self._answered:
            print(table(self._rows))
        for path in self._paths:
            print(plain(str(path)))
        if model and model.uncalibrated and any(row.get("label_score") for row in self._rows):
            print("label_score is uncalibrated: it ranks, and is no probability", file=sys.stderr)


class Json(Writer):
    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, answer: Answer) -> None:
        self._rows += answer.rows_with_masks()

    def fail(self, row: Row) -> None:
        self._rows.append(row)

    def close(self, model: Model | None) -> None:
        print(document(self._rows, model))


class JsonLines(Writer):
    streams = True

    def add(self, answer: Answer) -> None:
        for row in answer.rows_with_masks():
            print(as_json(row), flush=True)

    def fail(self, row: Row) -> None:
        print(as_json(row), flush=True)


class Csv(Writer):
    """Lists and pairs are JSON; an answer without rows has one line, which names its image.

    columns: if they are not given, those of all rows, which are then printed at the end.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self._file: csv.DictWriter[str] | None = None
        self._columns, self._rows = columns, list[Row]()
        self.streams = bool(columns)

    def add(self, answer: Answer) -> None:
        self._rows += answer.rows or ([answer.about] if answer.about else [])
        if self._columns:
            self._print()

    def close(self, model: Model | None) -> None:
        self._columns = self._columns or _names(self._rows)
        self._print()

    def _print(self) -> None:
        """Print the rows that have not been printed yet, and before the first one the header."""
        if self._file is None:
            self._file = csv.DictWriter(sys.stdout, self._columns, lineterminator="\n")
            self._file.writeheader()
        for row in self._rows:
            cells = {key: _csv_cell(value) for key, value in row.items()}
            if sys.stdout.isatty():  # a file has the texts as they are
                cells = {key: plain(v) if isinstance(v, str) else v for key, v in cells.items()}
            self._file.writerow(cells)
        self._rows = []
        sys.stdout.flush()


def _csv_cell(value: Any) -> Any:
    whole = value is None or isinstance(value, str | int | float)
    return value if whole else json.dumps(value, default=_in_json)


class Picture(Writer):
    """Writes the overlay of the one image to stdout, as a PNG file."""

    def add(self, answer: Answer) -> None:
        for _, overlay in answer.files:
            if isinstance(overlay, Image.Image):
                overlay.save(sys.stdout.buffer, "PNG", compress_level=1)
            else:  # a PNG file
                sys.stdout.buffer.write(overlay)
            return


WRITERS: dict[str, type[Writer]] = {"table": Table, "json": Json, "jsonl": JsonLines}


def writer(args: argparse.Namespace) -> Writer:
    """Return the writer of --format, for commands whose answers are rows.

    ``args.columns``, if there are any, returns the names of the columns of a command.
    """
    if args.format == "csv":
        return Csv(args.columns(args) if "columns" in args else ())
    return WRITERS[args.format]()


def print_rows(
    args: argparse.Namespace,
    rows: Sequence[Row],
    model: Model | None = None,
    paths: Sequence[Path] = (),
) -> int:
    """Print rows in the form of --format, and name written files; return exit status 0."""
    made = writer(args)
    made.add(Answer(rows))
    made.wrote(paths)
    made.close(model)
    return 0


def document(rows: Sequence[Row], model: Model | None) -> str:
    """Return rows as the JSON document of ``--json``."""
    return as_json({"model": asdict(model) if model else None, "results": rows}, indent=2)


def as_json(value: Any, indent: int | None = None) -> str:
    """Return JSON with letters as they are; escapes for what a terminal would obey."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_in_json)
    return plain(text, keep="\n")


def _in_json(value: Any) -> Any:
    """Return a mask as run lengths, an array as lists, and a picture as the address of a PNG."""
    match value:
        case Mask():
            return value.rle
        case np.ndarray():
            return value.tolist()
        case Image.Image():
            return f"data:image/png;base64,{base64.b64encode(encode_image(value)).decode()}"
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table with their keys as header, numbers aligned right, long lists cut."""
    if not rows:
        return "nothing found"
    header = _names(rows)
    lines = [header] + [[_cell(row.get(key, "")) for key in header] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numeric = [any(isinstance(row.get(key), int | float) for row in rows) for key in header]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    match value:
        case float():
            return f"{value:.3f}"
        case list() if len(value) > 4:
            return f"[{', '.join(map(_number, value[:3]))}, … {len(value)}]"
        case list():
            return f"[{', '.join(map(_number, value))}]"
        case dict():
            return plain(" ".join(f"{key}={_cell(item)}" for key, item in value.items()))
        case Mask():
            return f"mask of {value.area:,} pixels"
        case np.ndarray():
            return f"{value.dtype} {'×'.join(map(str, value.shape))}"
        case Image.Image():
            return f"picture {value.width}×{value.height}"
        case _:
            return plain(str(value))


def _number(value: Any) -> str:
    """Format an item of a list, such as a coordinate: whole numbers without decimals."""
    whole = isinstance(value, float) and value.is_integer()
    return _cell(int(value) if whole else value)
