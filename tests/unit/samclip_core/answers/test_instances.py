import numpy as np

from samclip_core.answers.instances import find_instances
from samclip_core.geometry import Geometry
from tests.fakes import FakeSamHead, features_of

WIDE = Geometry(640, 1280, 128)
TEXT_D = np.eye(3)
SCALE = 20.0


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Return two objects in the logits frame, and a coarse CLIP grid with them as class 0."""
    objects_ss = np.zeros((64, 64), int)
    objects_ss[5:14, 5:14], objects_ss[9:27, 40:59] = 1, 2
    classes_hw = np.ones((16, 16), int)
    classes_hw[1:4, 1:4] = classes_hw[2:7, 10:15] = 0
    return objects_ss, classes_hw


def test_each_instance_is_found_once_with_its_outline() -> None:
    objects_ss, classes_hw = scene()
    sam_head = FakeSamHead(objects_ss)
    features = features_of(WIDE, classes_hw, 3)
    found = find_instances(sam_head, features, TEXT_D[0], "cup", SCALE, TEXT_D[1:])
    assert len(sam_head.calls) == 1
    assert [mask.label for mask in found] == ["cup", "cup"]
    assert all(0.5 < mask.label_score <= 1 for mask in found)
    assert found[0].label_score >= found[1].label_score
    masks = [mask.mask_HW for mask in found]
    assert masks[0].shape == (640, 1280)
    objects = [WIDE.masks_to_original((objects_ss == k)[None] - 0.5)[0] for k in (1, 2)]
    for mask_HW in masks:
        assert any((mask_HW == object_HW).all() for object_HW in objects)
    assert not (masks[0] & masks[1]).any()


def test_two_pieces_of_one_object_give_it_once() -> None:
    objects_ss, classes_hw = scene()
    classes_hw[4] = 1  # splits the larger object in the grid
    features = features_of(WIDE, classes_hw, 3)
    found = find_instances(FakeSamHead(objects_ss), features, TEXT_D[0], "cup", SCALE, TEXT_D[1:])
    assert len(found) == 2


def test_what_is_not_there_is_not_found() -> None:
    objects_ss, classes_hw = scene()
    sam_head = FakeSamHead(objects_ss)
    features = features_of(WIDE, classes_hw, 3)
    assert find_instances(sam_head, features, TEXT_D[2], "cup", SCALE, TEXT_D[:2]) == []
    assert sam_head.calls == []
