"""The client against the real service, on photographs; its docstrings' examples run as well."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import samclip
from samclip import demo

from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e
SCENES = {scene.name: scene for scene in demo.SCENES}
LABELS = ["a cat", "a cup of coffee", "a temple", "a flower", "a bicycle"]


def path(name: str) -> Path:
    return demo.photograph(*SCENES[name].file)


@pytest.fixture
def client(service: Service) -> Iterator[samclip.Client]:
    with samclip.Client(service.address, timeout=300) as client:
        yield client


def test_a_photograph_is_sent_once(client: samclip.Client) -> None:
    fresh_HW3 = np.random.default_rng().integers(0, 256, (64, 96, 3), np.uint8)
    photo = client.image(fresh_HW3)
    with pytest.raises(samclip.KeyUnknown, match="send the image"):
        client.by_key(photo.key).embed()
    photo.embed()
    assert photo.info == samclip.ImageInfo(photo.key, 96, 64, cached=False)
    by_key = client.by_key(photo.key)
    vector_D = by_key.embed()
    assert by_key.info is not None
    assert by_key.info.cached
    np.testing.assert_array_equal(photo.embed(), vector_D)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["cat", "coffee", "temple", "flower", "motorcycle"])
def test_an_object_is_named_and_fills_its_box(client: samclip.Client, name: str) -> None:
    photo, box, labels = client.image(path(name)), SCENES[name].box, [*LABELS, "a motorcycle"]
    assert name in photo.classify(labels)[0].label
    (mask,) = photo.segment(boxes=[box])
    rankings = photo.classify_areas(labels, boxes=[box], masks=[mask], top_k=1)
    assert name in rankings[0][0].label
    x_min, y_min, x_max, y_max = map(int, box)
    box_HW = np.zeros_like(mask.array)
    box_HW[y_min:y_max, x_min:x_max] = True
    inside = (mask.array & box_HW).sum()
    assert inside > 0.8 * mask.area
    assert inside > 0.3 * (mask.array | box_HW).sum()


@pytest.mark.usefixtures("trained")
def test_the_sky_is_above(client: samclip.Client) -> None:
    found = client.image(path("temple")).semantic(["temple", "sky", "trees"], refine=True)
    sky_HW = found.label_map == 1
    assert sky_HW[:80, 380:].mean() > 0.8
    assert sky_HW[:200].mean() > sky_HW[200:].mean() + 0.2
    assert sky_HW[200:].mean() < 0.2
