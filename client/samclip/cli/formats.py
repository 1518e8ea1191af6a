"""The forms in which rows are printed: a table, JSON, JSON Lines and CSV."""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from samclip.errors import plain
from samclip.photo import Photo
from samclip.types import Mask, Model

Row = dict[str, Any]
Files = Iterator[tuple[str, Image.Image | bytes]]


@dataclass(frozen=True)
class Answer:
    """Rows of the output and, if they are about masks of an image, one mask per row.

    files: what ``--out`` writes, by relative path, the overlay first; drawn only if asked for.
    name: relative path of the image; ``stem``: the one under which files about it are written.
    """

    rows: Sequence[Row]
    masks: Sequence[Mask] = ()
    files: Files = field(default_factory=lambda: iter(()))
    photo: Photo | None = None
    name: str = ""
    stem: str = ""

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


class Json(Writer):
    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, answer: Answer) -> None:
        self._rows += answer.rows_with_masks()

    def fail(self, row: Row) -> None:
        self._rows.append(row)

    def close(self, model: Model | None) -> None:
        answer = {"model": asdict(model) if model else None, "results": self._rows}
        print(as_json(answer, indent=2))


class JsonLines(Writer):
    streams = True

    def add(self, answer: Answer) -> None:
        for row in answer.rows_with_masks():
            print(as_json(row), flush=True)

    def fail(self, row: Row) -> None:
        print(as_json(row), flush=True)


class Csv(Writer):
    """Columns are those of the first answer; lists and pairs are JSON."""

    streams = True

    def __init__(self) -> None:
        self._file: csv.DictWriter[str] | None = None

    def add(self, answer: Answer) -> None:
        for row in answer.rows:
            if self._file is None:
                self._file = csv.DictWriter(
                    sys.stdout, [*row], extrasaction="ignore", lineterminator="\n"
                )
                self._file.writeheader()
            cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            if sys.stdout.isatty():  # a file has the texts as they are
                cells = {key: plain(v) if isinstance(v, str) else v for key, v in cells.items()}
            self._file.writerow(cells)
        sys.stdout.flush()


class Picture(Writer):
    """Writes the overlay of the one image to stdout, as a PNG file."""

    def add(self, answer: Answer) -> None:
        for _, overlay in answer.files:
            if isinstance(overlay, Image.Image):
                overlay.save(sys.stdout.buffer, "PNG", compress_level=1)
            else:  # a PNG file
                sys.stdout.buffer.write(overlay)
            return


WRITERS: dict[str, type[Writer]] = {"table": Table, "json": Json, "jsonl": JsonLines, "csv": Csv}


def print_rows(args: argparse.Namespace, rows: Sequence[Row], model: Model | None = None) -> int:
    """Print rows in the form of --format; return exit status 0."""
    writer = WRITERS[args.format]()
    writer.add(Answer(rows))
    writer.close(model)
    return 0


def as_json(value: Any, indent: int | None = None) -> str:
    """Return JSON with letters as they are; escapes for what a terminal would obey."""
    return plain(json.dumps(value, indent=indent, ensure_ascii=False), keep="\n")


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table with their keys as header, numbers aligned right, long lists cut."""
    if not rows:
        return "nothing found"
    header = list(dict.fromkeys(key for row in rows for key in row))
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
            return plain(" ".join(f"{key}={item}" for key, item in value.items()))
        case _:
            return plain(str(value))


def _number(value: Any) -> str:
    """Format an item of a list, such as a coordinate: whole numbers without decimals."""
    whole = isinstance(value, float) and value.is_integer()
    return _cell(int(value) if whole else value)
