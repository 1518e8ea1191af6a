"""Objects that texts describe: found one by one, where a prompt says, or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from samclip_core.answers import instances
from samclip_core.answers.dense import BACKGROUND_WORDS
from samclip_core.answers.evidence import BESIDE, Compared, Evidence, Words
from samclip_core.answers.find_regions import regions_of
from samclip_core.answers.instances import Find
from samclip_core.answers.steps import Terms, run
from samclip_core.calibration import UNCALIBRATED, Calibration, Presence, RegionWeights
from samclip_core.config import EDGE
from samclip_core.errors import InvalidLabels, InvalidPrompt
from samclip_core.geometry import Geometry
from samclip_core.types import EverythingMask, ImageFeatures, Prompt, TextPrompt
from tests.fakes import LOGIT, FakeSamHead, features_of, with_regions

WIDE = Geometry(640, 1280, 128)
CUP, SAUCER, OTHER, NOWHERE = range(4)  # rows of the identity, the classes of a scene
WORDS = {"cup": CUP, "mug": CUP, "saucer": SAUCER, "unicorn": NOWHERE}


PRESENCE = Presence(map_weight=0.466, pooled_weight=0.19, offset=-3.336, min_score=0.6)
EVERYWHERE = replace(UNCALIBRATED, presence=PRESENCE)
"""A calibration without weights for regions."""
RANKED = replace(
    EVERYWHERE,
    presence=Presence(
        map_weight=0.1,
        pooled_weight=0.2,
        offset=-3.0,
        min_score=0.5,
        regions=RegionWeights(
            predicted_iou=0.5,
            stability=2.0,
            log_area=0.3,
            contrast=0.01,
            log_probability=0.1,
            border=-0.2,
        ),
    ),
)
SECOND = Prompt(box=(310, 60, 580, 340))
"""Around the second cup of a scene."""


def find(
    sam_head: FakeSamHead,
    features: ImageFeatures,
    *prompts: TextPrompt,
    min_score: float | None = None,
    calibration: Calibration | None = EVERYWHERE,
    exclusive: bool = False,
) -> list[list[EverythingMask]]:
    config = replace(EDGE, calibration=calibration)
    asked = Find(dict(enumerate(prompts)), min_score, exclusive)
    words = [*asked.texts, *asked.shared_texts]
    text_XD = np.eye(4)[[WORDS.get(word, OTHER) for word in words]]
    if features.regions_N is None:
        features = with_regions(features, sam_head)
    return run(asked.steps(features, text_XD, config, Terms.of(sam_head, 7)), sam_head)


def scene() -> tuple[FakeSamHead, ImageFeatures]:
    """Return two cups that touch and one apart, in 64×64 logits, and their map of 16×16 cells."""
    objects_ss = np.zeros((64, 64), int)
    objects_ss[4:16, 4:16], objects_ss[4:16, 16:28], objects_ss[16:28, 44:60] = 1, 2, 3
    classes_hw = np.full((16, 16), OTHER)
    classes_hw[1:4, 1:7] = classes_hw[4:7, 11:15] = CUP
    return FakeSamHead(objects_ss), features_of(WIDE, classes_hw, 4)


def object_of(mask: EverythingMask, sam_head: FakeSamHead) -> int:
    """Return the object that a mask has exactly."""
    inside_ss = mask.logits_hw > 0
    (number,) = np.unique(sam_head.objects_ss[inside_ss])
    assert (inside_ss == (sam_head.objects_ss == number)).all()
    return int(number)


def test_objects_that_touch_are_found_one_by_one() -> None:
    sam_head, features = scene()
    (found,) = find(sam_head, features, TextPrompt("cup"))
    assert sorted(object_of(mask, sam_head) for mask in found) == [1, 2, 3]
    assert all(mask.label == "cup" and 0.9 < mask.label_score <= 1 for mask in found)
    assert found[0].mask_HW.shape == (640, 1280)
    sam_head.calls.clear()
    (ranked,) = find(sam_head, features, TextPrompt("cup"), calibration=RANKED)
    assert {object_of(mask, sam_head) for mask in ranked} <= {1, 2, 3}
    assert sam_head.calls == []  # the regions are known, and no others are asked for


def test_without_a_ranking_no_regions_are_needed() -> None:
    sam_head, features = scene()
    find_cup = Find({0: TextPrompt("cup")})
    unranked, ranked = (replace(EDGE, calibration=each) for each in (EVERYWHERE, RANKED))
    assert "REGIONS" not in find_cup.outputs(unranked)
    assert "REGIONS" in find_cup.outputs(ranked)
    text_XD = np.eye(4)[[WORDS.get(word, OTHER) for word in ("cup", *find_cup.shared_texts)]]
    steps = find_cup.steps(features, text_XD, unranked, Terms.of(sam_head, 7))
    (found,) = run(steps, sam_head)
    assert sorted(object_of(mask, sam_head) for mask in found) == [1, 2, 3]


@pytest.mark.parametrize(("side", "expected"), [(5, {1}), (6, {1, 2})])
def test_a_sliver_beside_a_large_object_is_no_object(side: int, expected: set[int]) -> None:
    objects_ss = np.zeros((64, 64), int)
    objects_ss[:24, :24] = 1  # 576 cells, a twentieth of which are 29
    objects_ss[47 : 47 + side, 47 : 47 + side] = 2
    classes_hw = np.full((16, 16), OTHER)
    classes_hw[:6, :6] = classes_hw[11:14, 11:14] = CUP
    sam_head = FakeSamHead(objects_ss)
    square = features_of(Geometry(1280, 1280, 128), classes_hw, 4)
    (found,) = find(sam_head, square, TextPrompt("cup"))
    assert {object_of(mask, sam_head) for mask in found} == expected


@pytest.mark.parametrize("calibration", [EVERYWHERE, None])
def test_what_is_not_there_is_refused(calibration: Calibration | None) -> None:
    sam_head, features = scene()
    assert find(sam_head, features, TextPrompt("unicorn"), calibration=calibration) == [[]]


def test_min_score_0_keeps_all_and_1_nothing() -> None:
    sam_head, features = scene()
    (weak,) = find(sam_head, features, TextPrompt("unicorn"), min_score=0.0)
    assert weak
    assert all(mask.label_score < PRESENCE.min_score for mask in weak)
    assert find(sam_head, features, TextPrompt("cup"), min_score=1.0) == [[]]


def table() -> tuple[FakeSamHead, ImageFeatures]:
    """Return a scene whose second cup is more like a saucer in the map, and in the score."""
    sam_head, features = scene()
    dense_Dhw = features.clip_dense_Dhw
    dense_Dhw[:, 1:4, 4:7] = (np.eye(4)[SAUCER] * 0.76 + np.eye(4)[CUP] * 0.65)[:, None, None]
    return sam_head, features


@pytest.mark.parametrize("calibration", [EVERYWHERE, RANKED, None])
def test_a_text_is_judged_alone(calibration: Calibration | None) -> None:
    sam_head, features = table()
    prompts = [TextPrompt("saucer"), cup(), cup(SECOND), TextPrompt("unicorn")]
    together = find(sam_head, features, *prompts, min_score=0, calibration=calibration)
    for prompt, masks in zip(prompts, together, strict=True):
        (alone,) = find(sam_head, features, prompt, min_score=0, calibration=calibration)
        objects = [object_of(mask, sam_head) for mask in alone]
        assert [object_of(mask, sam_head) for mask in masks] == objects
        scores = [mask.label_score for mask in alone]
        assert [mask.label_score for mask in masks] == pytest.approx(scores)
    assert [object_of(mask, sam_head) for mask in together[2]] == [2]


def test_exclusive_masks_share_nothing_and_the_better_score_wins() -> None:
    sam_head, features = table()
    prompts = cup(), cup(SECOND), TextPrompt("saucer")
    cups, second, saucers = find(sam_head, features, *prompts, exclusive=True)
    assert {object_of(mask, sam_head) for mask in cups} == {1, 3}
    assert {object_of(mask, sam_head) for mask in saucers} == {2}
    assert second == []
    both = find(sam_head, features, cup(), cup(), exclusive=True)
    assert [len(masks) for masks in both] == [2, 0]  # the same text twice: the first has them


def test_cells_outside_the_picture_count_for_no_text() -> None:
    outside_ss = np.full((32, 32), -1, np.float32)
    outside_ss[-1] = outside_ss[0, 0] = 1  # one cell of the picture, which is 16 cells high
    first_ss = np.where(np.eye(32) > 0, 1, outside_ss).astype(np.float32)
    masks = [
        [EverythingMask(WIDE, logits_ss, 1, 1, label=label, label_score=score)]
        for logits_ss, label, score in ((first_ss, "cup", 0.5), (outside_ss, "saucer", 0.9))
    ]
    cups, saucers = instances._exclusive(masks)
    assert [int(mask.inside_hw.sum()) for mask in (*cups, *saucers)] == [15, 1]


def test_what_a_not_text_describes_better_is_left_out() -> None:
    sam_head, features = table()
    (found,) = find(sam_head, features, TextPrompt("cup", not_texts=("saucer",)))
    assert {object_of(mask, sam_head) for mask in found} == {1, 3}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Prompt(box=(60, 60, 300, 340)), {1}),
        (Prompt(box=(700, 200, 1280, 640)), {3}),
        (Prompt(points=((200, 200),)), {1}),
        (Prompt(points=((200, 200), (450, 200)), negative=(False, True)), {1}),
        (Prompt(points=((200, 200),), negative=(True,)), {2, 3}),
        (Prompt(points=((200, 600),)), set()),
    ],
)
def test_a_box_and_points_say_where(where: Prompt, expected: set[int]) -> None:
    sam_head, features = scene()
    (found,) = find(sam_head, features, TextPrompt("cup", where=where))
    assert {object_of(mask, sam_head) for mask in found} == expected


def test_where_nothing_can_be_min_score_0_finds_nothing() -> None:
    sam_head, features = scene()
    smaller_than_a_cell = Prompt(box=(1, 1, 2, 2))
    assert find(sam_head, features, TextPrompt("cup", where=smaller_than_a_cell), min_score=0) == [
        []
    ]
    unwanted = TextPrompt("unicorn", not_texts=("cup", "mug", "saucer", "plate"))
    assert find(sam_head, features, unwanted, min_score=0)[0] == []


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (TextPrompt(" "), InvalidLabels, "prompt 1: a text is empty"),
        (TextPrompt("cup", ("",)), InvalidLabels, "prompt 1: a text is empty"),
        (
            TextPrompt("cup", ("mug", "cup")),
            InvalidLabels,
            "prompt 1: the text 'cup' is also",
        ),
        (TextPrompt("cup", ("mug",) * 65), InvalidLabels, "prompt 1: 65 not_texts, at most 64"),
        (
            TextPrompt("cup", where=Prompt(mask_input_hw=np.zeros((4, 4)))),
            InvalidPrompt,
            "prompt 1: a text and a mask_input exclude each other",
        ),
        (
            TextPrompt("cup", where=Prompt(points=((2000, 3),))),
            InvalidPrompt,
            r"prompt 1: point \(2000, 3\) lies outside",
        ),
    ],
)
def test_a_prompt_that_cannot_be_is_named(
    prompt: TextPrompt, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Find({0: TextPrompt("cup"), 1: prompt}).check(WIDE)


def test_there_are_limits() -> None:
    many = {index: TextPrompt(f"cup {index}") for index in range(instances.MAX_TEXTS + 1)}
    with pytest.raises(InvalidPrompt, match="257 different texts, at most 256"):
        Find(many).check(WIDE)
    for least in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidPrompt, match=r"min_score is .*, expected 0 to 1"):
            Find({0: TextPrompt("cup")}, least).check(WIDE)
    with pytest.raises(InvalidPrompt, match="no prompts"):
        Find({}).check(WIDE)


def test_uncalibrated_a_score_is_the_share_among_the_text_and_the_background_words() -> None:
    sam_head, features = scene()
    features.clip_dense_Dhw[:, 1:4, 1:7] = (np.eye(4)[CUP] * 0.8 + np.eye(4)[OTHER] * 0.6)[
        :, None, None
    ]
    features.clip_dense_Dhw[:, 4:7, 11:15] = np.eye(4)[SAUCER][:, None, None]
    (found,) = find(sam_head, features, cup(), min_score=0, calibration=None)
    logits = EDGE.logit_scale * np.array([0.8, *[0.6] * len(BACKGROUND_WORDS)])
    share = np.exp(logits[0]) / np.exp(logits).sum()
    assert found[0].label_score == pytest.approx(share, abs=5e-3)
    assert [
        bool(find(sam_head, features, cup(), min_score=x, calibration=None)[0])
        for x in (share - 0.01, share + 0.01)
    ] == [True, False]


def test_a_box_around_a_very_thin_picture_leaves_out_nothing() -> None:
    picture = Geometry(30, 20_000, 256)  # one pixel high in the model frame, a quarter of a cell
    classes_hw = np.full((16, 16), OTHER)
    classes_hw[0, 2:6] = CUP
    objects_ss = np.zeros((64, 64), int)
    objects_ss[0, 8:24] = 1
    for where in (None, Prompt(box=(0, 0, 20_000, 30)), Prompt(points=((5000, 30),))):
        features = features_of(picture, classes_hw, 4)
        assert [len(found) for found in find(FakeSamHead(objects_ss), features, cup(where))] == [1]


def cup(where: Prompt | None = None) -> TextPrompt:
    return TextPrompt("cup", where=where)


def at_the_edge() -> tuple[FakeSamHead, ImageFeatures]:
    """Return a cup within the picture and one whose mask goes on below it, into the padding."""
    objects_ss = np.zeros((64, 64), int)
    objects_ss[4:12, 4:12], objects_ss[24:48, 44:52] = 1, 2
    classes_hw = np.full((16, 16), OTHER)
    classes_hw[1:3, 1:3] = classes_hw[6:8, 11:13] = CUP
    return FakeSamHead(objects_ss), features_of(WIDE, classes_hw, 4)


@pytest.mark.parametrize(
    ("where", "expected"),
    [(None, {1, 2}), (Prompt(box=(860, 460, 1060, 630)), {2}), (Prompt(points=((960, 640),)), {2})],
)
def test_what_a_mask_holds_of_the_padding_does_not_count(
    where: Prompt | None, expected: set[int]
) -> None:
    sam_head, features = at_the_edge()
    (found,) = find(sam_head, features, cup(where))
    assert {object_of(mask, sam_head) for mask in found} == expected


def test_points_and_a_box_find_what_is_no_region() -> None:
    sam_head, features = scene()
    without = with_regions(features, FakeSamHead(np.zeros((64, 64), int)))
    for where in (Prompt(points=((200, 200),)), Prompt(box=(60, 60, 300, 340))):
        (found,) = find(sam_head, without, cup(where))
        assert {object_of(mask, sam_head) for mask in found} == {1}


def test_fitted_a_score_is_that_of_the_region() -> None:
    sam_head, features = scene()
    mixed_D = np.eye(4)[CUP] * 0.8 + np.eye(4)[OTHER] * 0.6
    features.clip_dense_Dhw[:, 1:4, 1:4] = mixed_D[:, None, None]
    features = with_regions(features, sam_head)
    (found,) = find(sam_head, features, cup(), min_score=0, calibration=RANKED)
    (weak,) = (mask for mask in found if object_of(mask, sam_head) == 1)
    text_XD = np.eye(4)[[CUP, *(WORDS.get(word, OTHER) for word in BESIDE)]]
    evidence = Evidence.of(features, Words.of(["cup"], text_XD, EDGE.logit_scale), 64)
    added_R = Compared.of(evidence, features.regions).log_odds(RANKED.presence.regions, "cup")
    # The peak is in the other cups; the image vector is as near to a cup as to the background.
    log_odds = 0.1 * 2 * EDGE.logit_scale / 2 + 0.2 * 0 - 3 + added_R[0]
    assert weak.label_score == pytest.approx(1 / (1 + np.exp(-log_odds)), abs=1e-3)
    for least, expected in ((weak.label_score - 1e-6, 3), (weak.label_score + 1e-6, 2)):
        kept = find(sam_head, features, cup(), min_score=least, calibration=RANKED)
        assert len(kept[0]) == expected


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [
        ((0.9, 0.8, 0.85), [(0, 4, 35), (0, 24, 35)]),  # the whole, and its smaller part
        ((0.9, 0.85, 0.8), [(0, 4, 23), (1, 24, 35)]),  # two things, and both together
        ((0.9, 0.8, 0.3), [(0, 4, 23), (1, 24, 35)]),  # a whole that is much worse
    ],
)
def test_a_whole_that_is_nearly_as_good_as_its_best_part_comes_first(
    qualities: tuple[float, float, float], expected: list[tuple[int, int, int]]
) -> None:
    columns = ((4, 24), (24, 36), (4, 36))
    masks = []
    for (left, right), quality in zip(columns, qualities, strict=True):
        logits_ss = np.full((64, 64), -LOGIT, np.float32)
        logits_ss[8:24, left:right] = LOGIT
        masks.append(EverythingMask(WIDE, logits_ss, quality, 0.95))
    classes_hw = np.full((16, 16), OTHER)
    classes_hw[2:6, 1:9] = CUP
    features = features_of(WIDE, classes_hw, 4)
    packed_N = np.frombuffer(regions_of(features, masks).pack(), np.uint8)
    weights = RegionWeights(
        predicted_iou=5, stability=0, log_area=0, contrast=0, log_probability=0, border=0
    )
    calibration = replace(RANKED, presence=replace(RANKED.presence, regions=weights))
    features, head = replace(features, regions_N=packed_N), FakeSamHead(np.zeros((64, 64), int))
    (found,) = find(head, features, cup(), min_score=0, calibration=calibration)
    assert [
        (mask.thing, *np.flatnonzero(mask.inside_hw.any(axis=0))[[0, -1]]) for mask in found
    ] == expected
    scores = [mask.label_score for mask in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(("step", "expected"), [(0.01, 5), (0.05, 3), (0.13, 1)])
def test_there_are_several_masks_only_if_they_are_nearly_as_good(
    step: float, expected: int
) -> None:
    objects_ss, classes_hw = np.zeros((64, 64), int), np.full((16, 16), OTHER)
    for index in range(5):
        objects_ss[8:16, 12 * index + 4 : 12 * index + 12] = index + 1
        classes_hw[2:4, 3 * index + 1 : 3 * index + 3] = CUP
    sam_head, features = FakeSamHead(objects_ss), features_of(WIDE, classes_hw, 4)
    masks = [
        EverythingMask(WIDE, np.where(objects_ss == one, LOGIT, -LOGIT), 1 - step * one, 0.95)
        for one in range(1, 6)
    ]
    packed_N = np.frombuffer(regions_of(features, masks).pack(), np.uint8)
    features = replace(features, regions_N=packed_N)
    weights = replace(RANKED.presence.regions, predicted_iou=5.0)
    calibration = replace(RANKED, presence=replace(RANKED.presence, regions=weights))
    (found,) = find(sam_head, features, cup(), min_score=0, calibration=calibration)
    assert [object_of(mask, sam_head) for mask in found] == [*range(1, expected + 1)]
