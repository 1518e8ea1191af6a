"""The paper's tables, one command each, on small folders in the published layouts."""

import json
from pathlib import Path

import pytest

from tests.public_sets import WRITERS
from training import evaluate
from training.evaluation.public_sets import SETS

QUICK = ("--templates=own",)  # 80 templates take seconds
PROBE = ("--epochs=1",)
PAPER = ("voc_20_paper", "voc_21_clippy_paper", "voc_21_clear_win_paper")
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "imagenet": (("top1", "top5", "paper_top1", "paper_top5"), ()),
    "imagenet-v2": (("paper_top1",), QUICK),
    "places365": (("top1", "top5"), QUICK),
    "flickr30k": (("text_to_image_r1", "paper_text_to_image_r1"), ()),
    "coco-captions": (("text_to_image_r1", "paper_text_to_image_r1"), ()),
    "coco-boxes": (("ap", "ap50"), ()),
    "lvis-boxes": (("ap", "ap_rare"), ()),
    "voc": (tuple(f"{name}_miou" for name in PAPER), (*QUICK, "--protocol=paper")),
    "voc-context": (("voc_context_3_miou", "voc_context_4_clear_win_miou"), QUICK),
    "ade20k": (("ade20k_miou", "ade20k_two_heads_miou"), ("--refine", "--limit=1")),
    "coco-stuff": (("coco_stuff_miou",), ("--size=96", *QUICK)),
    "coco-panoptic": (("coco_panoptic_miou",), ("--size=96", *QUICK)),
    "probe": (("ade20k_probe_linear_sam_miou",), (*PROBE, "--features=sam")),
    "probe deeplab": (("voc_probe_deeplab_clip_miou",), (*PROBE, "--features=clip")),
    "probe psp": (("voc_probe_psp_tokens_miou",), PROBE),
    "probe-classify": (("folders_probe_classify_clip_top1",), (*PROBE, "--features=clip")),
}
PROBED = {
    "probe": "ade20k",
    "probe deeplab": "voc",
    "probe psp": "voc",
    "probe-classify": "imagenet",
}


def test_every_set_is_here():
    assert TABLES.keys() == SETS.keys() | PROBED.keys()


@pytest.mark.parametrize("suite", TABLES)
def test_each_table_is_one_command(tmp_path: Path, tiny_checkpoint: Path, suite: str):
    names, flags = TABLES[suite]
    WRITERS[PROBED.get(suite, suite)](tmp_path)
    out = tmp_path / "out/metrics.json"
    flags = *(f"--head={head}" for head in suite.split()[1:]), *flags
    given = [
        f"--checkpoint={tiny_checkpoint}",
        f"--suite={suite.split()[0]}",
        f"--root={tmp_path}",
        *flags,
    ]
    assert evaluate.main([*given, f"--out={out}"]) == 0
    written = json.loads(out.read_text())
    assert written["part"] == "all"  # public sets are measured whole
    assert all(0 <= written[name] <= 1 for name in names)
