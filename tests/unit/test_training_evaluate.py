import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samclip_core.config import EDGE
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests import photographs
from tests.photographs import Drawing, annotated, draw, instance, jpg, png, write_shard
from training import evaluate
from training.evaluate import _box, _centre, _confusion, _iou, _mean_iou, readable

NAMES = {1: "car", 2: "sky-other-merged", 3: "wall-brick"}


class Oracle:
    """Knows the drawings that it will be shown, and answers as told."""

    config = EDGE

    def __init__(self, drawings: Sequence[Drawing] = ()) -> None:
        self.drawings = {jpg(drawing.image_HW3): drawing for drawing in drawings}
        self.images: dict[bytes, np.ndarray] = {}
        self.texts: dict[str, np.ndarray] = {}

    def encode(self, encoded: bytes) -> Drawing:
        return self.drawings[encoded]

    def segment(
        self, drawing: Drawing, prompts: list[Prompt], multimask: bool
    ) -> list[SimpleNamespace]:
        """A box is filled; a point may mean everything, nothing or what is drawn there."""
        answers = []
        for prompt in prompts:
            mask_HW = np.zeros(drawing.labels_HW.shape, np.bool_)
            if multimask:
                x, y = (int(value) for value in prompt.points[0])
                object_HW = drawing.labels_HW == drawing.labels_HW[y, x]
                masks = [np.ones_like(mask_HW), mask_HW, object_HW]
            else:
                x_min, y_min, x_max, y_max = (int(value) for value in prompt.box)
                mask_HW[y_min:y_max, x_min:x_max] = True
                masks = [mask_HW]
            answers.append(SimpleNamespace(masks_MHW=np.stack(masks)))
        return answers

    def segment_text(self, encoded: bytes, labels: list[str], refine: bool) -> SimpleNamespace:
        """Every pixel right; with ``refine``, all of them the first label."""
        assert labels == ["car", "sky", "brick wall"]
        right_HW = self.drawings[encoded].labels_HW.astype(int) - 1
        return SimpleNamespace(label_map_HW=np.zeros_like(right_HW) if refine else right_HW)

    def embed_image(self, encoded: bytes) -> np.ndarray:
        return self.images[encoded]

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.texts[text] for text in texts])


def test_the_overlap_of_hand_counted_masks():
    a_HW = np.array([[1, 1, 0], [0, 0, 0]], bool)
    b_HW = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert _iou(a_HW, b_HW) == 1 / 4
    assert _iou(a_HW, a_HW) == 1
    assert _iou(a_HW, ~a_HW) == 0
    assert _iou(np.zeros_like(a_HW), np.zeros_like(a_HW)) == 0


def test_confusion_counts_truth_in_rows_and_skips_what_is_no_class():
    truth_HW = np.array([[2, 2, 7], [7, 255, 0]], np.uint8)
    answer_HW = np.array([[0, 1, 1], [1, 0, 1]])
    assert _confusion(truth_HW, answer_HW, [2, 7]).tolist() == [[1, 1], [0, 2]]


def test_confusion_of_a_picture_without_any_class_is_empty():
    nothing_HW = np.zeros((2, 2), np.uint8)
    assert _confusion(nothing_HW, nothing_HW.astype(int), [1, 2, 5]).tolist() == [[0] * 3] * 3


def test_mean_iou_is_over_the_classes_that_occur():
    # Class 0: 3 of 4 found, 1 of another called so. Class 1: 1 of 2. Class 2 is only answered.
    confusion_CC = np.array([[3, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert _mean_iou(confusion_CC) == pytest.approx((3 / 5 + 1 / 2) / 2)


def test_a_box_ends_after_its_last_pixel():
    mask_HW = np.zeros((6, 8), np.bool_)
    mask_HW[2:4, 3:7] = True
    mask_HW[5, 4] = True
    assert _box(mask_HW) == (3, 2, 7, 6)


def test_the_centre_is_the_middle_of_the_innermost_pixel():
    mask_HW = np.zeros((9, 12), np.bool_)
    mask_HW[1:6, 2:7] = True  # its centre is pixel (4, 3)
    mask_HW[8, 10] = True
    assert _centre(mask_HW) == (4.5, 3.5)


def test_the_edge_of_the_picture_is_an_edge():
    assert _centre(np.ones((5, 5), np.bool_)) == (2.5, 2.5)
    assert _centre(np.ones((1, 1), np.bool_)) == (0.5, 0.5)


def test_the_centre_of_a_ring_lies_on_it():
    y, x = np.ogrid[:41, :41]
    distance_HW = np.hypot(y - 20, x - 20)
    ring_HW = (distance_HW < 18) & (distance_HW > 10)
    column, row = _centre(ring_HW)
    assert ring_HW[int(row), int(column)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("person", "person"),
        ("tree-merged", "tree"),
        ("sky-other-merged", "sky"),
        ("wall-brick", "brick wall"),
        ("wall-other-merged", "wall"),
        ("floor-wood", "wood floor"),
        ("window-blind", "window blind"),
        ("playingfield", "playingfield"),
    ],
)
def test_names_are_said_as_people_say_them(name: str, said: str):
    assert readable(name) == said


def test_boxes_and_points_ask_for_the_regions_that_people_outlined(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    masks = [mask for drawing in drawings for mask in drawing.masks]
    coco = {
        str(place): {
            "jpg": jpg(drawing.image_HW3),
            "json": json.dumps(
                {"instances": [instance(mask, iscrowd=0) for mask in drawing.masks]}
            ).encode(),
        }
        for place, drawing in enumerate(drawings)
    }
    nothing = {"jpg": jpg(draw(7).image_HW3), "json": b"{}"}
    write_shard(tmp_path / "coco_multi/val-0.tar", coco | {"nothing": nothing})
    write_shard(
        tmp_path / "bsds500/val-0.tar", {str(i): annotated(d) for i, d in enumerate(drawings)}
    )

    metrics = evaluate.masks(Oracle(drawings), tmp_path)

    share = np.mean([mask.mean() for mask in masks])
    for source in ("coco_multi", "bsds500"):
        assert metrics.pop(f"{source}_box_miou") == 1
        assert metrics.pop(f"{source}_point_best_of_3_miou") == 1
        # The first of the three is what the model itself thinks best: here, everything.
        assert metrics.pop(f"{source}_point_miou") == pytest.approx(share)
    assert not metrics


def test_top_1_counts_the_photographs_whose_class_is_named(tmp_path: Path):
    names = {3: "cat", 5: "dog", 9: "fish"}
    oracle, samples = Oracle(), {}
    for place, (truth, answer) in enumerate([(3, 3), (9, 9), (5, 5), (5, 9)]):
        encoded = jpg(draw(place).image_HW3)
        samples[str(place)] = {"jpg": encoded, "json": b"{}", "cls": str(truth).encode()}
        oracle.images[encoded] = np.eye(3)[list(names).index(answer)]
    for row, name in zip(np.eye(3), names.values(), strict=True):
        oracle.texts[EDGE.templates[0].format(name)] = row
    sources = ("caltech101", "imagen200", "imagenet1k_sample")
    for source in sources:
        write_shard(tmp_path / source / "val-0.tar", samples)
        photographs.write_classes(tmp_path / source, names)
    metrics = evaluate.classification(oracle, tmp_path)
    assert metrics == {f"{source}_top1": 0.75 for source in sources}


def test_retrieval_ranks_the_captions_own_photograph(tmp_path: Path):
    """Of twelve photographs, the captions find theirs as the 1st, 1st, 3rd and 8th."""
    oracle, samples = Oracle(), {}
    captions = {0: ["first", "again"], 1: ["third"], 2: ["eighth"]}
    for place in range(13):
        encoded = jpg(draw(place).image_HW3)
        told = captions.get(place, [f"other {place}"]) if place < 12 else []
        info = json.dumps({"captions": told}).encode()
        samples[str(place)] = {"jpg": encoded, "json": info}
        oracle.images[encoded] = np.eye(13)[place]
        # Uncaptioned, the last photograph is none that could be found, however similar.
        oracle.texts |= {text: np.eye(13)[place] + np.eye(13)[12] for text in told}
    oracle.texts["third"][[5, 6]] = 2
    oracle.texts["eighth"][3:10] = 2
    write_shard(tmp_path / "coco_multi/val-0.tar", samples)
    metrics = evaluate.retrieval(oracle, tmp_path)
    expected = {"r1": 11 / 13, "r5": 12 / 13, "r10": 1.0}
    assert metrics == {
        f"coco_multi_text_to_image_{key}": pytest.approx(value) for key, value in expected.items()
    }


def test_semantic_maps_are_compared_where_there_is_a_class(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    partly = draw(5)  # not fully labelled, so not asked for
    for source, kind in {"coco_multi": "panoptic", "labelmefacade": "", "camvid": ""}.items():
        info = json.dumps({"label_kind": kind}).encode()
        samples = {
            str(i): {"jpg": jpg(d.image_HW3), "json": info, "png": png(d.labels_HW)}
            for i, d in enumerate(drawings)
        }
        if source == "coco_multi":
            samples["partly"] = {
                "jpg": jpg(partly.image_HW3),
                "json": b'{"label_kind": "things_only"}',
            }
        write_shard(tmp_path / source / "val-0.tar", samples)
        photographs.write_classes(tmp_path / source, {0: "void"} | NAMES, ignored=(0,))

    metrics = evaluate.semantic(Oracle(drawings), tmp_path)

    labels_N = np.concatenate([drawing.labels_HW.ravel() for drawing in drawings])
    always_first = (labels_N == 1).sum() / (labels_N > 0).sum() / 3
    for source in ("coco_multi", "labelmefacade", "camvid"):
        assert metrics.pop(f"{source}_semantic_miou") == 1
        assert metrics.pop(f"{source}_semantic_two_heads_miou") == pytest.approx(always_first)
    assert not metrics


def test_the_command_writes_what_it_prints(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    samples = {
        str(seed): {
            "jpg": jpg(draw(seed).image_HW3),
            "json": json.dumps({"captions": [f"the dog {seed}"]}).encode(),
        }
        for seed in range(2)
    }
    write_shard(tmp_path / "coco_multi/val-0.tar", samples)
    out = tmp_path / "new/metrics.json"
    arguments = {"--checkpoint": tiny_checkpoint, "--root": tmp_path, "--out": out}
    argv = [str(word) for pair in arguments.items() for word in pair]
    assert evaluate.main([*argv, "--suite", "retrieval"]) == 0
    written = json.loads(out.read_text())
    assert written.pop("digest") == SamClip.load(tiny_checkpoint).digest
    assert list(written) == [f"coco_multi_text_to_image_r{k}" for k in (1, 5, 10)]
    assert written["coco_multi_text_to_image_r5"] == 1
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [row[2].strip() for row in rows] == [f"{value:.1%}" for value in written.values()]
