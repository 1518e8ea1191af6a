"""Commands about images: what they ask, print and draw."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as pb

from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import HEIGHT, WIDTH, Server, png


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_classify(ask: Any, photo: str) -> None:
    answer = ask("classify", photo, "--labels", "cat", "horse", "--top-k", "1")
    model = {"name": "fake", "digest": "d1935", "kind": "edge", "dtype": "int8", "graphs": ""}
    model |= {
        "uncalibrated": False,
        "without_masks": False,
        "demonstration": False,
        "image_size": 0,
        "sure": 0.0,
        "squash": False,
    }
    assert answer["model"] == model
    (row,) = answer["results"]
    assert (row["image"], row["label"], row["score"]) == (photo, "horse", 0.625)


def test_classify_parts(ask: Any, photo: str) -> None:
    boxes = ("--box", "3", "4", "10", "12", "--box", "0", "0", "2", "2")
    rows = ask("classify", photo, "--labels", "cat", "horse", "--top-k", "1", *boxes)["results"]
    assert [row["box"] for row in rows] == [[3, 4, 10, 12], [0, 0, 2, 2]]
    assert {row["label"] for row in rows} == {"horse"}


def test_segment_writes_masks(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    boxes = ("--box", "3", "4", "10", "12", "--box", "0", "0", "2", "2")
    rows = ask("segment", photo, *boxes, "--out", str(out))["results"]
    assert [row["area"] for row in rows] == [56, 4]
    assert rows[0]["box"] == [3, 4, 10, 12]
    names = {path.name for path in out.iterdir()}
    assert names == {"mask-000.png", "mask-001.png", "overlay.png"}
    mask_HW = read(out / "mask-000.png")
    assert set(np.unique(mask_HW)) == {0, 255}
    assert (mask_HW[4:12, 3:10] == 255).all()
    overlay_HW3 = read(out / "overlay.png")
    assert overlay_HW3.shape == (HEIGHT, WIDTH, 3)
    assert (overlay_HW3[-1, -1] == 99).all()
    assert (overlay_HW3[8, 6] != 99).any()


def test_segment_passes_its_prompt_on(ask: Any, photo: str, server: Server) -> None:
    rows = ask("segment", photo, "--point", "5", "6", "--negative", "1", "2", "--multimask")
    assert [row["thing"] for row in rows["results"]] == [0, 0, 0]
    request = server[0].calls[-1][0]
    assert [*request.prompts[0].points] == [pb.Point(x=5, y=6), pb.Point(x=1, y=2, negative=True)]
    texts = "--text", "a dog", "--text", "a cat", "--not", "a wolf", "--min-score", "0.5"
    rows = ask("segment", photo, *texts, "--exclusive")
    assert [row["label"] for row in rows["results"]] == ["a dog", "a cat"]
    request = server[0].calls[-1][0]
    assert (request.min_score, request.exclusive) == (0.5, True)
    assert [list(prompt.not_texts) for prompt in request.prompts] == [["a wolf"]] * 2


def test_of_each_thing_that_a_text_describes_the_best_mask_is_written(
    run: Run, photo: str, tmp_path: Path
) -> None:
    for more, things in (([], [0, 1]), (["--multimask"], [0, 0, 1])):
        out = tmp_path / f"out{len(more)}"
        ran = run("segment", photo, "--text", "two things", "--json", "--out", str(out), *more)
        assert [row["thing"] for row in json.loads(ran.out)["results"]] == things
        assert len([*out.glob("mask-*.png")]) == len(things)
        assert ("other sizes of these objects, 1 more" in ran.err) == (not more)


def test_segment_by_examples(ask: Any, photo: str, tmp_path: Path, server: Server) -> None:
    cup = tmp_path / "cup.png"
    cup.write_bytes(png(7))
    out = ("--out", str(tmp_path / "out"))
    boxes = ("--box", "3", "4", "10", "12", "--box", "0", "0", "2", "2")
    ask("segment", photo, "--like", str(cup), *boxes, "--text", "a cup", *out)
    (prompt,) = server[0].calls[-1][0].prompts
    assert (prompt.text, prompt.HasField("box")) == ("a cup", False)
    assert [one.box.x_max for one in prompt.examples] == [10, 2]
    assert {one.image.encoded for one in prompt.examples} == {png(7)}  # no key is known yet
    ask("segment", photo, "--like", str(cup), "--point", "5", "6", "--point", "7", "8")
    (example,) = server[0].calls[-1][0].prompts[0].examples
    assert [(point.x, point.y) for point in example.points.points] == [(5, 6), (7, 8)]


def test_examples_in_several_images_are_refused(run: Run, photo: str, server: Server) -> None:
    ran = run("segment", photo, "--like", photo, "--like", photo, "--box", "3", "4", "10", "12")
    assert (ran.status, "--like takes one image" in ran.err) == (2, True), ran.err
    assert not server[0].calls


MASK_HW = np.zeros((HEIGHT, WIDTH), np.bool_)
MASK_HW[4:12, 3:10] = True
LEVELS_HW = MASK_HW.astype(np.uint8)
CUT_OUT_HW4 = np.dstack([np.full((HEIGHT, WIDTH, 3), 90, np.uint8), 255 * LEVELS_HW])
OPAQUE_HW4 = np.dstack([np.repeat(200 * LEVELS_HW[..., None], 3, 2), 255 + 0 * LEVELS_HW])


@pytest.mark.parametrize(
    "levels",
    [
        255 * LEVELS_HW,
        LEVELS_HW,
        9000 * LEVELS_HW.astype(np.uint16),
        np.repeat(255 * LEVELS_HW[..., None], 3, 2),
        CUT_OUT_HW4,
        OPAQUE_HW4,
        MASK_HW,
    ],
    ids=["white", "ones", "deep", "rgb", "cut-out", "opaque", "npy"],
)
def test_segment_by_a_rough_mask(
    ask: Any, photo: str, tmp_path: Path, server: Server, levels: np.ndarray
) -> None:
    file = tmp_path / ("mask.npy" if levels.dtype == bool else "mask.png")
    np.save(file, levels) if levels.dtype == bool else Image.fromarray(levels).save(file)
    ask("segment", photo, "--mask", str(file), "--point", "5", "6")
    (prompt,) = server[0].calls[-1][0].prompts
    found_HW = decode_rle(prompt.mask.counts, prompt.mask.height, prompt.mask.width)
    np.testing.assert_array_equal(found_HW, MASK_HW)
    assert len(prompt.points) == 1


def test_semantic(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = ask("semantic", photo, "--labels", "sky", "sea", "--refine", "--out", str(out))
    found = [(row["label"], row["share"], row["score"]) for row in rows["results"]]
    assert found == [("sky", 0.5, 0.75), ("sea", 0.5, 0.75)]
    assert (read(out / "mask-001.png")[:, WIDTH // 2 :] == 255).all()
    assert read(out / "overlay.png").shape[0] > HEIGHT  # with the legend below the image


def test_explain(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--label", "a dog", "--others", "sky", "--out", str(out))
    rows = ask("explain", photo, *options)["results"]
    highest_at = [WIDTH // 2, 0]
    expected = {"label": "a dog", "low": 0, "high": 0.5, "highest_at": highest_at}
    assert rows == [{"image": photo, **expected}]
    levels_HW = read(out / "heat.png")
    assert levels_HW.shape == (HEIGHT, WIDTH)
    assert (levels_HW[:, WIDTH // 2 :] == 255).all()
    assert read(out / "overlay.png").shape[0] > HEIGHT  # with the range below the image


def test_everything(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = ask("everything", photo, "--points-per-side", "3", "--labels", "a", "--out", str(out))
    assert [row["label"] for row in answer["results"]] == ["a"] * 3
    assert len(list(out.iterdir())) == 4


def test_a_panoptic_picture_and_its_json_as_cocos_tools_read_them(
    ask: Any, photo: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = ask("everything", photo, "--labels", "a", "b", "--panoptic", "--out", str(out))
    content = json.loads((out / "panoptic.json").read_text())
    (image,), (annotation,) = content["images"], content["annotations"]
    assert annotation["image_id"] == image["id"]
    assert (image["file_name"], image["width"]) == (Path(photo).name, WIDTH)
    names = {category["id"]: category["name"] for category in content["categories"]}
    colours_HW3 = np.asarray(Image.open(out / "panoptic" / annotation["file_name"])).astype(int)
    ids_HW = colours_HW3[..., 0] + 256 * colours_HW3[..., 1] + 256**2 * colours_HW3[..., 2]
    assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids_HW))
    for segment, row in zip(annotation["segments_info"], rows["results"], strict=True):
        y_N, x_N = np.nonzero(ids_HW == segment["id"])
        x, y, width, height = segment["bbox"]
        assert (x, y, x + width, y + height) == (
            x_N.min(), y_N.min(), x_N.max() + 1, y_N.max() + 1,
        )  # fmt: skip
        assert segment["area"] == len(y_N) == row["area"]
        assert segment["iscrowd"] == 0
        assert names[segment["category_id"]] == row["label"] != ""


def test_embed(ask: Any, photo: str) -> None:
    rows = ask("embed", photo, "--text", "a", "bb")["results"]
    assert [row["of"] for row in rows] == [photo, "a", "bb"]
    assert rows[0]["vector"] == [0.5] * 4  # unit length
    assert rows[1]["vector"] == [0, 1, 0, 0]
