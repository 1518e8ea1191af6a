"""The paper's tables, one command each, on small folders in the published layouts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coco_set import write, write_coco
from tests.photographs import draw, jpg, png
from training.evaluation import evaluate

DRAWINGS = [draw(seed, 48, 64) for seed in range(2)]
PICTURES = [jpg(drawing.image_HW3) for drawing in DRAWINGS]
MAPS = [drawing.labels_HW for drawing in DRAWINGS]


def classes(root: Path) -> None:
    for wnid, picture in zip(("n01440764", "n02012849"), PICTURES, strict=True):
        write(root / "val" / wnid / "1.JPEG", picture)


def places(root: Path) -> None:
    write(root / "val_256/Places365_val_00000001.jpg", PICTURES[0])
    write(root / "places365_val.txt", "Places365_val_00000001.jpg 1\n")
    write(root / "categories_places365.txt", "/a/airfield 0\n/a/airplane_cabin 1\n")


def flickr30k(root: Path) -> None:
    records = [
        {"filename": f"{i}.jpg", "split": "test", "sentences": [{"raw": f"the dog {i}"}]}
        for i in range(2)
    ]
    write(root / "dataset_flickr30k.json", {"images": records})
    for i, picture in enumerate(PICTURES):
        write(root / f"flickr30k_images/{i}.jpg", picture)


def coco(root: Path) -> None:
    write_coco(root, DRAWINGS)


def voc(root: Path) -> None:
    write(root / "ImageSets/Segmentation/val.txt", "0\n1\n")
    for i, (picture, labels_HW) in enumerate(zip(PICTURES, MAPS, strict=True)):
        write(root / f"JPEGImages/{i}.jpg", picture)
        write(root / f"SegmentationClass/{i}.png", png(labels_HW))


def ade20k(root: Path) -> None:
    rows = "\n".join(f"{value}\t0\t0\t0\t{name}" for value, name in enumerate("abc", 1))
    write(root / "objectInfo150.txt", f"Idx\tRatio\tTrain\tVal\tName\n{rows}\n")
    write(root / "images/validation/1.jpg", PICTURES[0])
    write(root / "annotations/validation/1.png", png(MAPS[0]))


QUICK = ("--templates=own",)  # 80 templates take seconds
PAPER = ("voc_20_paper", "voc_21_clippy_paper", "voc_21_clear_win_paper")
TABLES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "imagenet": (classes, ("top1", "top5", "paper_top1", "paper_top5"), ()),
    "places365": (places, ("top1", "top5"), ()),
    "flickr30k": (flickr30k, ("text_to_image_r1", "paper_text_to_image_r1"), ()),
    "lvis-boxes": (coco, ("ap", "ap_rare"), ()),
    "voc": (voc, tuple(f"{name}_miou" for name in PAPER), (*QUICK, "--protocol=paper")),
    "ade20k": (ade20k, ("ade20k_miou", "ade20k_two_heads_miou"), ("--refine", "--limit=1")),
    "coco-stuff": (coco, ("coco_stuff_miou",), ("--size=96",)),
}


@pytest.mark.parametrize("suite", TABLES)
def test_each_table_is_one_command(tmp_path: Path, tiny_checkpoint: Path, suite: str):
    write_layout, names, flags = TABLES[suite]
    write_layout(tmp_path)
    out = tmp_path / "out/metrics.json"
    given = [f"--checkpoint={tiny_checkpoint}", f"--suite={suite}", f"--root={tmp_path}", *flags]
    assert evaluate.main([*given, f"--out={out}"]) == 0
    written = json.loads(out.read_text())
    assert written["part"] == "all"  # public sets are measured whole
    assert all(0 <= written[name] <= 1 for name in names)
