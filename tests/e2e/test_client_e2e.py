"""Every method of the client against the real service, on photographs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import samclip
from samclip import demo

from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e
SCENES = {scene.name: scene for scene in demo.SCENES}
TEMPLATES = ["a photo of {}."]


def path(name: str) -> Path:
    return demo.photograph(*SCENES[name].file)


@pytest.fixture
def client(service: Service) -> Iterator[samclip.Client]:
    with samclip.Client(service.address, timeout=300) as client:
        yield client


@pytest.fixture
def cat(client: samclip.Client) -> samclip.Photo:
    return client.image(path("cat"))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


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


def test_classify(client: samclip.Client, cat: samclip.Photo) -> None:
    labels = ["a cat", "a cup of coffee", "a temple"]
    scores = cat.classify(labels, templates=TEMPLATES)
    assert sorted(score.label for score in scores) == sorted(labels)
    assert sum(score.score for score in scores) == pytest.approx(1, abs=1e-3)
    assert [score.score for score in scores] == sorted((s.score for s in scores), reverse=True)
    assert cat.classify(labels, templates=TEMPLATES, top_k=1) == scores[:1]
    # The cosine of the two embeddings agrees within float16, in which they are sent.
    texts_TD = client.embed_text([TEMPLATES[0].format(label) for label in labels])
    cosines = dict(zip(labels, texts_TD @ cat.embed(), strict=True))
    for score in scores:
        assert score.similarity == pytest.approx(cosines[score.label], abs=5e-3)
    assert client.model is not None
    assert len(client.model.digest) == 64


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["cat", "coffee", "temple", "flower"])
def test_the_right_label_wins(client: samclip.Client, name: str) -> None:
    labels = ["a cat", "a cup of coffee", "a temple", "a flower", "a bicycle"]
    best = client.image(path(name)).classify(labels)[0]
    assert name in best.label


def test_parts_of_a_photograph(client: samclip.Client, cat: samclip.Photo) -> None:
    box = SCENES["cat"].box
    (mask,) = cat.segment(boxes=[box])
    labels = ["a cat", "a cup of coffee", "a temple"]
    rankings = cat.classify_areas(labels, boxes=[box], masks=[mask], top_k=2)
    assert [len(ranking) for ranking in rankings] == [2, 2]
    assert cat.info is not None
    with pytest.raises(samclip.ServiceError, match="area 1: box"):
        cat.classify_areas(labels, boxes=[box, (0, 0, cat.info.width + 1, 9)])

    client.index("e2e-parts", {name: path(name) for name in ("cat", "coffee")})
    by_box = client.search("e2e-parts", image=cat, box=box, with_text="a cat")
    by_mask = client.search("e2e-parts", image=cat, mask=mask, with_text="a cat")
    assert {hit.id for hit in by_box} == {hit.id for hit in by_mask} == {"cat", "coffee"}
    (other,) = client.search("e2e-parts", id="cat", with_text="coffee")
    assert other.id == "coffee"
    client.delete("e2e-parts", all=True)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["cat", "coffee", "temple", "flower"])
def test_the_right_label_wins_in_a_box(client: samclip.Client, name: str) -> None:
    labels = ["a cat", "a cup of coffee", "a temple", "a flower", "a bicycle"]
    ((best,),) = client.image(path(name)).classify_areas(labels, boxes=[SCENES[name].box], top_k=1)
    assert name in best.label


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["cat", "coffee", "temple", "flower", "motorcycle"])
def test_a_box_is_filled_by_its_object(client: samclip.Client, name: str) -> None:
    (mask,) = client.image(path(name)).segment(boxes=[SCENES[name].box])
    x_min, y_min, x_max, y_max = map(int, SCENES[name].box)
    box_HW = np.zeros_like(mask.array)
    box_HW[y_min:y_max, x_min:x_max] = True
    assert (mask.array & box_HW).sum() > 0.8 * mask.area
    assert iou(mask.array, box_HW) > 0.3


def test_segment(cat: samclip.Photo) -> None:
    three = cat.segment([(200, 60)], negative=[(440, 290)], multimask=True)
    assert len(three) == 3
    assert all(mask.array.shape == (300, 451) for mask in three)
    ious = [mask.predicted_iou for mask in three]
    assert ious == sorted(ious, reverse=True)
    for mask in three:
        assert mask.area == mask.array.sum()
        if mask.area:
            y_N, x_N = np.nonzero(mask.array)
            expected = (x_N.min(), y_N.min(), x_N.max() + 1, y_N.max() + 1)
            assert mask.box == expected


def test_masks_are_the_same_in_every_encoding(cat: samclip.Photo) -> None:
    box = SCENES["cat"].box
    (expected,) = cat.segment(boxes=[box])
    for encoding in ("png", "polygons", "packed_bits"):
        (mask,) = cat.segment(boxes=[box], encoding=encoding)
        np.testing.assert_array_equal(mask, expected)


def test_several_boxes_and_a_mask_that_goes_back_in(cat: samclip.Photo) -> None:
    boxes = [(15, 0, 385, 299), (130, 80, 215, 150)]
    both = cat.segment(boxes=boxes)
    (alone,) = cat.segment(boxes=boxes[1:])
    assert iou(both[1].array, alone.array) > 0.99
    (logits,) = cat.segment(boxes=boxes[:1], encoding="logits")
    assert logits.array.dtype == np.float32
    (again,) = cat.segment(boxes=boxes[:1], mask_input=logits)
    assert again.array.shape == both[0].array.shape


def test_segment_by_text(cat: samclip.Photo) -> None:
    found = cat.segment(text="a cat")
    assert found
    for mask in found:
        assert mask.label == "a cat"
        assert mask.array.any()
        assert mask.label_score >= 0.6
    assert cat.segment(text="a unicorn") == []
    assert cat.segment(text="a cat", min_score=1.0) == []
    cats, dogs = cat.segment_prompts(
        [samclip.Prompt(text="a cat"), samclip.Prompt(text="a dog", not_texts=["a cat"])],
        min_score=0.0,
    )
    assert cats
    assert all(mask.label == "a dog" for mask in dogs)


def test_everything(client: samclip.Client) -> None:
    labels = ["flower", "leaves"]
    masks = client.image(path("flower")).everything(labels, points_per_side=4)
    areas = [mask.area for mask in masks]
    assert areas == sorted(areas, reverse=True)
    assert {mask.label for mask in masks} <= set(labels)


def test_semantic(client: samclip.Client) -> None:
    photo, labels = client.image(path("temple")), ["temple", "sky", "trees"]
    for refine in (False, True):
        found = photo.semantic(labels, refine=refine)
        assert found.label_map.shape == (427, 640)
        assert set(np.unique(found.label_map)) <= {0, 1, 2}
        assert sum(region.area for region in found.regions) == found.label_map.size
        for region in found.regions:
            of_label_HW = found.label_map == labels.index(region.label)
            np.testing.assert_array_equal(region.mask, of_label_HW)
            assert 0 < region.score <= 1
    assert photo.semantic(labels, background=True).label_map.min() >= -1


def test_explain(client: samclip.Client) -> None:
    photo = client.image(path("temple"))
    similarity, probability = (photo.explain("sky", others) for others in ((), ("temple", "trees")))
    for found in (similarity, probability):
        assert found.values.shape == (427, 640)
        assert found.low < found.high
        assert (found.levels.min(), found.levels.max()) == (0, 255)
    assert 0 <= probability.low < probability.high <= 1


@pytest.mark.usefixtures("trained")
def test_the_sky_is_above(client: samclip.Client) -> None:
    found = client.image(path("temple")).semantic(["temple", "sky", "trees"], refine=True)
    sky_HW = found.label_map == 1
    assert sky_HW[:80, 380:].mean() > 0.8
    assert sky_HW[:200].mean() > sky_HW[200:].mean() + 0.2
    assert sky_HW[200:].mean() < 0.2


def test_embeddings(client: samclip.Client, cat: samclip.Photo) -> None:
    vector_D = cat.embed()
    assert np.linalg.norm(vector_D) == pytest.approx(1, abs=1e-2)
    texts_TD = client.embed_text(["a cat", "a temple"])
    np.testing.assert_allclose(np.linalg.norm(texts_TD, axis=1), 1, atol=1e-3)
    features = cat.features()
    assert features["clip_pooled"].shape == vector_D.shape == texts_TD[0].shape
    assert features["clip_dense"].shape[0] == len(vector_D)
    assert features["sam"].ndim == 3
    assert set(cat.features("sam")) == {"sam"}


def test_collections(client: samclip.Client) -> None:
    paths = {name: path(name) for name in ("cat", "coffee", "temple")}
    done = client.index(
        "e2e-client", {**paths, "broken": b"no image"}, metadata={"cat": {"name": "Chelsea"}}
    )
    assert done.indexed == 3
    assert list(done.errors) == ["broken"]
    (described,) = client.describe("e2e-client")
    assert described.count == 3

    best = client.search("e2e-client", image=paths["cat"], top_k=1)[0]
    assert (best.id, best.metadata) == ("cat", {"name": "Chelsea"})
    assert best.score == pytest.approx(1, abs=1e-2)
    others = client.search("e2e-client", id="cat")
    assert sorted(hit.id for hit in others) == ["coffee", "temple"]
    assert len(client.search("e2e-client", text="a building")) == 3

    assert client.delete("e2e-client", ["coffee"]) == 1
    assert client.delete("e2e-client", all=True) == 2
    with pytest.raises(samclip.NotFound):
        client.search("e2e-client", text="a building")


async def test_the_async_twin(service: Service) -> None:
    async with samclip.AsyncClient(service.address, timeout=300) as client:
        cat, coffee = client.image(path("cat")), client.image(path("coffee"))
        scores, (mask,), found, vectors_TD = await asyncio.gather(
            cat.classify(["a cat", "a dog"]),
            coffee.segment([(365, 285)]),
            cat.semantic(["cat", "blanket"]),
            client.embed_text(["a cat"]),
        )
        assert len(scores) == 2
        assert mask.array.shape == (400, 600)
        assert found.label_map.shape == (300, 451)
        assert vectors_TD.shape[0] == 1
