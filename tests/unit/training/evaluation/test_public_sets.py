"""Public data sets are read as published: a wrong index or a class beside the right one is seen."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samclip_core.config import EDGE
from tests.coco_set import INSTANCES, write
from tests.oracle import Oracle
from tests.photographs import jpg, png
from tests.public_sets import DRAWINGS, PICTURES, WRITERS, karpathy, pascal, write_palette
from training.evaluation import public_sets
from training.evaluation.layouts import Captioned, Classified, LabelledSet
from training.evaluation.public_sets import SETS, open_set
from training.evaluation.recognition import centre_square
from training.evaluation.suite import Options
from training.suites import measure_public

LABELS = [drawing.labels_HW for drawing in DRAWINGS]
MAPS = {
    "voc": (LABELS, {1: "aeroplane", 11: "dining table", 20: "tv monitor"}, 20),
    "voc-context": (LABELS, {1: "table", 2: "tv monitor", 3: "car"}, 3),
    "ade20k": (LABELS[:1], {1: "a", 2: "b", 3: "c"}, 3),
    "coco-stuff": ([labels - np.uint8(1) for labels in LABELS], {0: "a", 2: "c", 4: "grass"}, 4),
    "coco-panoptic": (LABELS, {1: "a", 2: "b", 3: "c"}, 3),
}


@pytest.mark.parametrize("name", MAPS)
def test_label_maps_and_classes_are_those_of_the_files(tmp_path: Path, name: str):
    WRITERS[name](tmp_path)
    data = open_set(name, tmp_path)
    assert isinstance(data, LabelledSet)
    labels, classes, count = MAPS[name]
    assert [picture.read() for picture in data.pictures] == PICTURES[: len(labels)]
    for picture, labels_HW in zip(data.pictures, labels, strict=True):
        np.testing.assert_array_equal(picture.labels(), labels_HW)
    assert {value: data.classes[value] for value in classes} == classes
    assert len(data.classes) == count


@pytest.mark.parametrize("name", ["ade20k", "coco-stuff", "coco-panoptic", "voc-context"])
def test_right_maps_have_a_mean_iou_of_1(tmp_path: Path, name: str):
    """Of a class beside the right one, the oracle would know nothing."""
    WRITERS[name](tmp_path)
    oracle = Oracle(DRAWINGS)
    metrics = measure_public(name, oracle, Options(root=tmp_path, protocol="served"))
    ways = [value for name, value in metrics.items() if name.endswith("_miou")]
    assert ways == [1] * len(ways)
    assert ways


def test_mmsegmentations_maps_of_pascal_context_have_its_alphabetical_classes(tmp_path: Path):
    pascal("SegmentationClassContext", ["SegmentationContext/val"])(tmp_path)
    data = open_set("voc-context", tmp_path)
    assert isinstance(data, LabelledSet)
    known = {1: "aeroplane", 2: "bag", 40: "potted plant", 50: "table", 55: "tv monitor"}
    assert {value: data.classes[value] for value in known} == known
    assert (data.classes[59], len(data.classes), data.background) == ("wood", 59, 0)


def test_vocs_prompts_are_clippys():
    """Background, 20 classes and 39 words, so that an index from 21 on is background."""
    prompts, classes = public_sets.VOC_PROMPTS, public_sets.VOC_CLASSES
    assert len(prompts) == len(set(prompts)) == 1 + 20 + 39
    assert (prompts[0], prompts[21], prompts[-1]) == ("background", "bag", "wood")
    differing = set(zip(classes, prompts[1:21], strict=True)) - {(name, name) for name in classes}
    assert differing == {("dining table", "table"), ("tv monitor", "television monitor")}


def test_ids_of_panoptic_segments_are_colours(tmp_path: Path):
    """Ids above one byte, the void id 0, and an id without a segment are read correctly."""
    ids_HW = np.array([[0, 1, 300], [70000, 300, 5]])
    rgb_HW3 = np.stack([ids_HW % 256, ids_HW // 256 % 256, ids_HW // 65536], axis=-1)
    write(tmp_path / "val2017/1.jpg", jpg(np.zeros((2, 3, 3), np.uint8)))
    write(tmp_path / "annotations/panoptic_val2017/1.png", png(rgb_HW3.astype(np.uint8)))
    segments = [{"id": i, "category_id": c} for i, c in ((1, 18), (300, 200), (70000, 1))]
    content = {
        "images": [{"id": 1}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "person"}, {"id": 200, "name": "rug-merged"}],
    }
    write(tmp_path / "annotations/panoptic_val2017.json", content)
    data = open_set("coco-panoptic", tmp_path)
    assert isinstance(data, LabelledSet)
    assert data.pictures[0].labels().tolist() == [[0, 18, 200], [1, 200, 0]]
    assert data.classes == {1: "person", 200: "rug-merged"}


def test_places_have_the_class_of_their_line(tmp_path: Path):
    WRITERS["places365"](tmp_path)
    data = open_set("places365", tmp_path)
    assert isinstance(data, Classified)
    assert data.names == ["airfield", "airplane cabin"]
    assert [(path.read_bytes(), index) for path, index in data.pictures] == [
        (PICTURES[0], 1),
        (PICTURES[1], 0),
    ]
    oracle = Oracle()
    for index, (encoded, name) in enumerate(zip(PICTURES, data.names[::-1], strict=True)):
        oracle.images[encoded] = np.eye(2)[index]
        oracle.images[centre_square(encoded).tobytes()] = np.eye(2)[index]
        oracle.texts[EDGE.templates[0].format(name)] = np.eye(2)[index]
    metrics = measure_public("places365", oracle, Options(root=tmp_path))
    assert (metrics["top1"], metrics["paper_top1"], metrics["photographs"]) == (1, 1, 2)


@pytest.mark.parametrize("name", ["flickr30k", "coco-captions"])
def test_captions_are_those_of_karpathys_test_split(tmp_path: Path, name: str):
    WRITERS[name](tmp_path)
    data = open_set(name, tmp_path)
    assert isinstance(data, Captioned)
    found = [(path.read_bytes(), texts) for path, texts in data.pictures]
    assert found == [(PICTURES[i], [f"the dog {i}"]) for i in range(2)]


def test_captions_are_cocos_own_without_karpathys_split(tmp_path: Path):
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [{"image_id": 7, "caption": text} for text in ("A dog.", "Two dogs.")],
    }
    write(tmp_path / "annotations/captions_val2017.json", content)
    picture = write(tmp_path / "val2017/7.jpg", PICTURES[0])
    data = open_set("coco-captions", tmp_path)
    assert data == Captioned([(picture, ["A dog.", "Two dogs."])])


@pytest.mark.parametrize("name", SETS)
def test_a_folder_without_the_set_says_what_is_expected_and_where_it_is(tmp_path: Path, name: str):
    with pytest.raises(FileNotFoundError, match=f"no {name} in .*expected .*from http"):
        open_set(name, tmp_path / "nowhere")


def test_fewer_photographs_than_published_are_said(tmp_path: Path, capsys):
    WRITERS["ade20k"](tmp_path)
    open_set("ade20k", tmp_path)
    assert "has 1 photographs; 2,000 were published" in capsys.readouterr().err
    open_set("ade20k", tmp_path, split=0)
    assert "published" not in capsys.readouterr().err  # figures are of the other split


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def resize(path: Path) -> None:
    write_palette(path, np.zeros((64, 48), np.uint8))


def hollow(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + whole[-12:])  # and the end of its format


def colour(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").save(path)


def grey(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("L").save(path)


def strangers(path: Path) -> None:
    path.write_text(path.read_text().replace('"image_id": 1', '"image_id": 77'))


def shorten(path: Path) -> None:
    """Leave the first word of each line, or the records of a JSON without most of their keys."""
    lines = path.read_text().splitlines()
    whole = "\n".join(line.split()[0] for line in lines)
    path.write_text('{"images": [{}]}' if path.suffix == ".json" else whole)


def misnumber(path: Path) -> None:
    path.write_text(path.read_text().replace("airplane_cabin 1", "airplane_cabin 2"))


@pytest.mark.parametrize(
    ("name", "file", "spoil", "said"),
    [
        ("voc", "JPEGImages/1.jpg", Path.unlink, "JPEGImages/1.jpg"),
        ("voc", "JPEGImages/1.jpg", cut, "1.jpg: the JPEG file is damaged or truncated"),
        ("voc", "SegmentationClass/0.png", cut, "0.png: the PNG file "),
        ("voc", "SegmentationClass/0.png", resize, "0.png has 48×64 pixels, and .*0.jpg 64×48"),
        ("voc", "SegmentationClass/0.png", hollow, "0.png is no label map as published"),
        ("voc", "SegmentationClass/0.png", colour, "0.png has colours"),
        (
            "coco-panoptic",
            "annotations/panoptic_val2017/0.png",
            grey,
            "png is no label map as published",
        ),
        ("ade20k", "images/validation/1.jpg", Path.unlink, "images/validation/1.jpg"),
        ("imagenet", "val/n01440764/1.JPEG", cut, "1.JPEG: the JPEG file is damaged or truncated"),
        ("coco-stuff", "stuffthingmaps/val2017/1.png", Path.unlink, "val2017/1.png"),
        ("coco-boxes", INSTANCES, strangers, "instances_val2017.json: 3 annotations are of images"),
        ("coco-panoptic", "annotations/panoptic_val2017.json", strangers, "the first of 77"),
        ("places365", "categories_places365.txt", misnumber, r"numbers its classes \[0, 2\]"),
        ("places365", "places365_val.txt", shorten, "places365_val.txt, .* are not as published"),
        ("flickr30k", "dataset_flickr30k.json", shorten, "are not as published .*split"),
        ("places365", "val_256/Places365_val_00000002.jpg", Path.unlink, "val_00000002.jpg"),
        ("flickr30k", "flickr30k-images/0.jpg", Path.unlink, "flickr30k-images/0.jpg"),
    ],
)
def test_damage_is_said_before_anything_is_measured(tmp_path: Path, name, file, spoil, said):
    WRITERS[name](tmp_path)
    spoil(tmp_path / file)
    with pytest.raises((OSError, ValueError), match=said):
        open_set(name, tmp_path)


def test_files_outside_the_limit_are_not_read(tmp_path: Path):
    karpathy("dataset_flickr30k.json", "flickr30k_images", {})(tmp_path)
    write(tmp_path / "flickr30k_images/1.jpg", b"never read")
    assert len(open_set("flickr30k", tmp_path, limit=1).pictures) == 1


def test_a_class_that_the_list_of_names_lacks_is_said(tmp_path: Path):
    WRITERS["places365"](tmp_path)
    write(tmp_path / "places365_val.txt", "Places365_val_00000001.jpg 2\n")
    with pytest.raises(ValueError, match=r"places365_val.txt: .*jpg 2 is a class that .* not name"):
        open_set("places365", tmp_path)
