"""Requests of the ``samclip`` command: each function takes its arguments and returns rows.

A row is a line of the table, or an object of the JSON output.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from samclip import drawing
from samclip.client import Client
from samclip.errors import PermissionDenied, ServiceError, Unauthenticated, Unavailable
from samclip.types import Mask, Panoptic

Row = dict[str, Any]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
FILES_AT_ONCE = 8  # per step of the progress count


def classify(client: Client, args: argparse.Namespace) -> list[Row]:
    options = {"templates": args.templates, "top_k": args.top_k}

    def ask(name: str) -> list[Row]:
        photo = client.image(name)
        if args.box:
            of = [{"image": name, "box": box} for box in args.box]
            scores = photo.classify_areas(args.labels, boxes=args.box, **options)
        else:
            of, scores = [{"image": name}], [photo.classify(args.labels, **options)]
        return [
            {**what, "label": s.label, "score": s.score, "similarity": s.similarity}
            for what, ranking in zip(of, scores, strict=True)
            for s in ranking
        ]

    return _each(args.images, "image", ask)


def segment(client: Client, args: argparse.Namespace) -> list[Row]:
    photo = client.image(args.image)
    masks = photo.segment(
        args.point,
        negative=args.negative,
        boxes=args.box,
        text=args.text,
        not_texts=args.not_texts,
        min_score=args.min_score,
        multimask=args.multimask,
    )
    picture = drawing.draw_masks(drawing.read_pixels(photo.encoded), masks)
    picture = drawing.draw_prompts(picture, args.point, args.box, args.negative)
    return _mask_rows(masks, args.out, picture)


def everything(client: Client, args: argparse.Namespace) -> list[Row]:
    photo = client.image(args.image)
    asked = {
        "vocabulary": args.vocabulary,
        "min_label_score": args.min_label_score,
        "points_per_side": args.points_per_side,
        "crop_layers": args.crop_layers,
    }
    if args.panoptic:
        return _panoptic_rows(photo.panoptic(args.labels, **asked), args)
    masks = photo.everything(args.labels, **asked)
    # Smallest on top: the first mask covers the others.
    picture = drawing.draw_masks(drawing.read_pixels(photo.encoded), masks[::-1])
    return _mask_rows(masks, args.out, picture)


def _panoptic_rows(found: Panoptic, args: argparse.Namespace) -> list[Row]:
    """Write the picture and its JSON, as panopticapi reads them, beside each other."""
    if args.out:
        folder = args.out / "panoptic"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "panoptic.png").write_bytes(found.png)
        content = json.dumps(found.coco(Path(args.image).name, "panoptic.png"))
        (args.out / "panoptic.json").write_text(content + "\n")
    return [{**vars(segment), "bbox": list(segment.bbox)} for segment in found.segments]


def semantic(client: Client, args: argparse.Namespace) -> list[Row]:
    photo = client.image(args.image)
    found = photo.semantic(args.labels, refine=args.refine, background=args.background)
    if args.out:
        pixels = drawing.read_pixels(photo.encoded)
        _save(drawing.draw_semantic(pixels, found), args.out / "overlay.png")
        for region in found.regions:
            name = f"mask-{found.labels.index(region.label):03d}.png"
            _save(drawing.mask_image(region.mask.array), args.out / name)
    return [
        {
            "label": region.label,
            "score": region.score,
            "area": region.area,
            "share": region.area / found.label_map.size,
            "box": list(region.mask.box),
        }
        for region in found.regions
    ]


def explain(client: Client, args: argparse.Namespace) -> list[Row]:
    photo = client.image(args.image)
    found = photo.explain(args.label, args.others)
    if args.out:
        pixels = drawing.read_pixels(photo.encoded)
        _save(drawing.draw_heat(pixels, found), args.out / "overlay.png")
        _save(Image.fromarray(found.levels), args.out / "heat.png")
    y, x = divmod(int(found.levels.argmax()), found.levels.shape[1])
    return [{"label": args.label, "low": found.low, "high": found.high, "highest_at": [x, y]}]


def embed(client: Client, args: argparse.Namespace) -> list[Row]:
    def ask(name: str) -> list[Row]:
        return [{"of": name, "vector": client.image(name).embed().tolist()}]

    rows = _each(args.images, "of", ask)
    if args.text:
        vectors = client.embed_text(args.text).tolist()
        rows += [{"of": text, "vector": v} for text, v in zip(args.text, vectors, strict=True)]
    return rows


def index(client: Client, args: argparse.Namespace) -> list[Row]:
    files = _image_files(args.paths)
    names = list(files)
    if not names:
        raise ValueError(f"no image files found: expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    indexed, replaced, errors = 0, 0, dict[str, str]()
    for start in range(0, len(names), FILES_AT_ONCE):
        batch = names[start : start + FILES_AT_ONCE]
        done = client.index(
            args.collection,
            {name: files[name] for name in batch},
            metadata={name: dict(args.metadata) for name in batch},
        )
        indexed += done.indexed
        replaced += done.replaced
        errors.update(done.errors)
        print(f"\rindexing {start + len(batch)}/{len(names)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    counts = {"indexed": indexed, "replaced": replaced, "failed": len(errors)}
    rows: list[Row] = [{"collection": args.collection, **counts, "error": ""}]
    for name, message in errors.items():
        rows.append({"collection": args.collection, "indexed": 0, "error": f"{name}: {message}"})
    return rows


def search(client: Client, args: argparse.Namespace) -> list[Row]:
    hits = client.search(
        args.collection,
        text=args.text,
        image=args.image,
        id=args.id,
        top_k=args.top_k,
        filter=dict(args.where),
        offset=args.offset,
        box=args.box,
        with_text=args.with_text,
    )
    return [{"id": hit.id, "score": hit.score, "metadata": dict(hit.metadata)} for hit in hits]


def delete(client: Client, args: argparse.Namespace) -> list[Row]:
    name = args.collection
    if args.ids and args.all:
        raise ValueError(
            "nothing was deleted: pass IDs to delete those photographs, or --all --yes "
            "without IDs to delete the whole collection"
        )
    if args.ids:
        return [{"collection": name, "deleted": client.delete(name, args.ids)}]
    if not (args.all and args.yes):
        _confirm_deletion(client, name)
    return [{"collection": name, "deleted": client.delete(name, all=True)}]


def _confirm_deletion(client: Client, name: str) -> None:
    """Ask for confirmation. Raises ValueError if it is refused, or stdin is no terminal."""
    if not sys.stdin.isatty():
        raise ValueError(
            "nothing was deleted: no IDs were given; pass --all --yes to delete the collection"
        )
    (found,) = client.describe(name)
    question = f"Delete all {found.count:,} photographs of {name!r}? Type the collection's name: "
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != name:
        raise ValueError("nothing was deleted: the answer is not the collection's name")


def describe(client: Client, args: argparse.Namespace) -> list[Row]:
    return [vars(collection) for collection in client.describe(args.collection)]


def _mask_rows(masks: Sequence[Mask], out: Path | None, picture: Image.Image) -> list[Row]:
    if out:
        _save(picture, out / "overlay.png")
        for number, mask in enumerate(masks):
            _save(drawing.mask_image(mask.array), out / f"mask-{number:03d}.png")
    return [
        {
            "mask": number,
            "label": mask.label,
            "label_score": mask.label_score,
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
            "area": mask.area,
            "box": list(mask.box),
        }
        for number, mask in enumerate(masks)
    ]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)


def _each(names: Sequence[str], key: str, ask: Callable[[str], list[Row]]) -> list[Row]:
    """Return the rows of several images; an image that fails gets a row with its error.

    Raises the exception of ``ask`` for a single image, or if the service refuses the first one.
    """
    if len(names) == 1:
        return ask(names[0])
    rows: list[Row] = []
    for name in names:
        try:
            rows += ask(name)
        except (Unavailable, Unauthenticated, PermissionDenied) as error:
            if not rows:
                raise
            rows.append({key: name, "error": f"{error}; the remaining images were skipped"})
            break
        except (ServiceError, OSError, ValueError) as error:
            rows.append({key: name, "error": str(error)})
    return rows


def _image_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return id → path. The id is the file's name, or its path relative to a given folder.

    Raises ValueError if two files would have the same id.
    """
    files: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            found = [f for f in sorted(path.rglob("*")) if f.suffix.lower() in IMAGE_SUFFIXES]
        else:
            found = [path]
        for file in found:
            id = path.name if file is path else file.relative_to(path).as_posix()
            other = files.setdefault(id, file)
            if os.path.abspath(other) != os.path.abspath(file):
                raise ValueError(
                    f"{other} and {file} would both have the id {id!r}: index the folder that "
                    "contains both (ids are paths relative to it), or rename one"
                )
    return files
