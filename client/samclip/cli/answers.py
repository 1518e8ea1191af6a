"""The images that a command is given, and the answers about them.

Several images are asked about at once; the answers are in order, and none is lost because of a bad
image.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from grpc import StatusCode

from samclip.cli import data_sets, formats
from samclip.cli.formats import Answer, Row, Writer
from samclip.cli.service import connect
from samclip.cli.usage import Run, UsageError
from samclip.client import Client
from samclip.errors import ServiceError, plain
from samclip.images import SUFFIXES, Source, check_ids, encode_image, image_files
from samclip.many_photos import AT_ONCE, REFUSALS, reason
from samclip.patience import each
from samclip.photo import Photo
from samclip.progress import bar

STDIN = "-"
HELP = "file, folder, quoted glob, http(s) address, or - for stdin"
Advance = Callable[[int], None]
Ask = Callable[[Photo, argparse.Namespace], Answer]
LOCAL_AT_ONCE = 2
"""Images at once if the model is in this process: one is answered, on all cores, while the next one
is read."""


def over_images(
    ask: Ask,
    check: Callable[[argparse.Namespace], None] = lambda args: None,
    after: Callable[[Client, argparse.Namespace], list[Row]] = lambda client, args: [],
) -> Run:
    """Return a command: it asks about each of ``args.images``, and writes the answers.

    The rows of ``after`` come last. ``check`` raises UsageError for options that do not fit.
    """

    def run(args: argparse.Namespace) -> int:
        check(args)
        found = expand(args.images)
        writer = _writer(args, found)
        with connect(args) as client:
            failed = _ask_each(client, ask, args, _works(args, found), writer)
            if rows := after(client, args):
                writer.add(Answer(rows))
            writer.close(client.model)
        return 1 if failed else 0

    return run


class _Work(NamedTuple):
    source: Source
    stem: str
    out: Path | None  # the folder, or the picture, that --out writes


def _works(args: argparse.Namespace, found: Sequence[Source]) -> list[_Work]:
    """Return each image with its output name. Raises ValueError if two would share one."""
    out = getattr(args, "out", None)
    if not (out or args.format in ("coco", "yolo")):
        return [_Work(source, "", None) for source in found]
    stems = output_names(found)
    if not out or str(out) == STDIN or args.format == "yolo":
        outs: list[Path | None] = [None] * len(found)
    else:
        outs = [out] if len(found) == 1 else [out / stem for stem in stems]
    return [_Work(*each) for each in zip(found, stems, outs, strict=True)]


def _writer(args: argparse.Namespace, found: Sequence[Source]) -> Writer:
    """Return the writer for --format and --out. Raises UsageError if they do not fit."""
    out: Path | None = getattr(args, "out", None)
    if out is not None and _is_picture(out):
        if len(found) > 1:
            raise UsageError(
                f"--out {out} is the picture of one image, found {len(found)}: name a folder"
            )
        if args.format == "yolo":
            raise UsageError(f"--out {out} is a picture, --format yolo writes a folder")
        if str(out) == STDIN:
            if args.format != "table":
                raise UsageError(f"--out - prints a picture: leave out --format {args.format}")
            return formats.Picture()
        if any(os.path.realpath(source.name) == os.path.realpath(out) for source in found):
            raise UsageError(f"--out {out} is the photograph itself: name another file")
    if args.format == "coco":
        return data_sets.Coco(args.categories(args))
    if args.format == "yolo":
        if out is None:
            raise UsageError("--format yolo writes files: name their folder with --out FOLDER")
        return data_sets.Yolo(args.categories(args), out)
    return formats.writer(args)


def _ask_each(
    client: Client, ask: Ask, args: argparse.Namespace, works: Sequence[_Work], writer: Writer
) -> int:
    """Give all answers to the writer; return the number of images without one.

    Raises the service's error if it refuses before it has answered about any.
    """

    def photo_of(work: _Work) -> tuple[_Work, Photo]:
        photo = client.image(read(work.source))
        photo.name = work.source.id
        return work, photo

    def answer(given: tuple[_Work, Photo]) -> tuple[Answer, list[Path]]:
        work, photo = given
        got = ask(photo, args)
        about = {args.key: work.source.name}
        rows = [{**about, **row} for row in got.rows]
        paths = _save(got, work.out, _is_picture(args.out)) if work.out else []
        named = Answer(rows, got.masks, got.files, photo, work.source.id, work.stem, about)
        return named, paths

    failed = 0
    at_once = LOCAL_AT_ONCE if args.local else AT_ONCE
    with shown(args.command, len(works), writer.streams) as advance:
        for number, (work, future) in enumerate(each(works, answer, at_once, photo_of)):
            try:
                got, paths = future.result()
            except REFUSALS as error:
                if failed == number:
                    raise
                report(writer, args.key, work.source.name, f"{error}; the rest were skipped")
                return failed + len(works) - number
            except (ServiceError, OSError, ValueError) as error:
                if getattr(error, "code", None) is StatusCode.UNIMPLEMENTED:
                    raise  # something else listens there, such as a web server
                report(writer, args.key, work.source.name, reason(work.source.name, error))
                failed += 1
            else:
                writer.add(got)
                writer.wrote(paths)
            advance(1)
    return failed


def shown(what: str, total: int, streams: bool = False) -> AbstractContextManager[Advance]:
    """Return a progress bar on stderr if that is a terminal.

    There is none for a single image, or if a terminal shows output that ``streams``.
    """
    seen = sys.stderr.isatty() and not (streams and sys.stdout.isatty())
    return bar(what, total, wanted=total > 1 and seen)


def report(writer: Writer, key: str, name: str, message: str) -> None:
    """Name an image without an answer on stderr, and in formats that have a place for it."""
    print(plain(f"samclip: {name}: {message}"), file=sys.stderr)
    writer.fail({key: name, "error": message})


def _is_picture(out: Path) -> bool:
    return str(out) == STDIN or out.suffix.lower() in SUFFIXES


def _save(answer: Answer, out: Path, as_picture: bool) -> list[Path]:
    """Write an answer's files into a folder, or its overlay as a picture; return the paths."""
    paths = []
    for name, content in islice(answer.files, 1) if as_picture else answer.files:
        path = out if as_picture else out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, compress_level=1)  # of a PNG file
        paths.append(path)
    return paths


def expand(given: Sequence[str]) -> list[Source]:
    """Return the images of all that is given, in order, each once."""
    found = ([Source(STDIN, "stdin")] if each == STDIN else image_files([each]) for each in given)
    return list(dict.fromkeys(source for several in found for source in several))


def one(given: str) -> Source:
    """Return the only image of what is given. Raises ValueError if there are several."""
    found = expand([given])
    if len(found) > 1:
        raise ValueError(f"{given} has {len(found)} images: give one of them")
    return found[0]


def read(source: Source) -> bytes:
    """Return the image file. Raises OSError or ValueError if it cannot be had."""
    if source.problem:
        raise ValueError(source.problem)
    return encode_image(sys.stdin.buffer.read() if source.name == STDIN else source.name)


def output_names(found: Sequence[Source]) -> list[str]:
    """Return a relative path per image for what is written about it: its id without suffix.

    Images that differ only in their suffix keep it, unless only one of them is read. Raises
    ValueError if two ids are the same, or one leads out of the folder.
    """
    check_ids(found)
    paths = [PurePosixPath(source.id) for source in found]
    for path in paths:
        if ".." in path.parts or path.is_absolute():
            raise ValueError(
                f"the id {str(path)!r} leads out of the folder: give a path without .."
            )
    # "...jpg" has the stem "..", which is no name.
    stems = [str(path.with_suffix("") if path.stem.strip(".") else path) for path in paths]
    named = list(zip(found, stems, strict=True))
    names = [{stem, source.id} for source, stem in named if not source.problem]
    count = Counter(name for both in names for name in both)
    return [stem if count[stem] <= 1 else source.id for source, stem in named]
