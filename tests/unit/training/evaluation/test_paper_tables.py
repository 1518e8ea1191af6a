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
    for part in ("train", "val"):
        for wnid, picture in zip(("n01440764", "n02012849"), PICTURES, strict=True):
            write(root / part / wnid / "1.JPEG", picture)


def coco(root: Path) -> None:
    write_coco(root, DRAWINGS)


def voc(root: Path) -> None:
    for part in ("train", "val"):
        write(root / f"ImageSets/Segmentation/{part}.txt", "0\n1\n")
    for i, (picture, labels_HW) in enumerate(zip(PICTURES, MAPS, strict=True)):
        write(root / f"JPEGImages/{i}.jpg", picture)
        write(root / f"SegmentationClass/{i}.png", png(labels_HW))


def ade20k(root: Path) -> None:
    rows = "\n".join(f"{value}\t0\t0\t0\t{name}" for value, name in enumerate("abc", 1))
    write(root / "objectInfo150.txt", f"Idx\tRatio\tTrain\tVal\tName\n{rows}\n")
    for part in ("training", "validation"):
        write(root / f"images/{part}/1.jpg", PICTURES[0])
        write(root / f"annotations/{part}/1.png", png(MAPS[0]))


QUICK = ("--templates=own",)  # 80 templates take seconds
PROBE = ("--epochs=1",)
PAPER = ("voc_20_paper", "voc_21_clippy_paper", "voc_21_clear_win_paper")
TABLES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "imagenet": (classes, ("top1", "top5", "paper_top1", "paper_top5"), ()),
    "coco-captions": (coco, ("text_to_image_r1", "paper_text_to_image_r1"), ()),
    "coco-boxes": (coco, ("ap", "ap50"), ()),
    "voc": (voc, tuple(f"{name}_miou" for name in PAPER), (*QUICK, "--protocol=paper")),
    "ade20k": (ade20k, ("ade20k_miou", "ade20k_two_heads_miou"), ("--refine", "--limit=1")),
    "coco-panoptic": (coco, ("coco_panoptic_miou",), ("--size=96",)),
    "probe": (ade20k, ("ade20k_probe_linear_sam_miou",), (*PROBE, "--features=sam")),
    "probe-classify": (
        classes,
        ("folders_probe_classify_clip_top1",),
        (*PROBE, "--features=clip"),
    ),
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
