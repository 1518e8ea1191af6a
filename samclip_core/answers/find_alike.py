"""Every object like some examples, or nothing where there is none.

The candidates are the picture's regions, or the masks that answer a text. Weights turn a region's
cosines with an example, its quality and its size into the log-odds that it is such an object; the
best of several examples counts. Fitted weights (``samclip_core.calibration.Alike``) make the score
a probability; without them it is uncalibrated.

Shape letters: R regions, K examples, s×s cells of the SAM head's low-resolution logits.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.examples import Example, Vectors, check_examples
from samclip_core.answers.find_regions import fits, regions_of
from samclip_core.answers.request import Output, Request, check_min_score
from samclip_core.answers.steps import Steps, Terms
from samclip_core.answers.things import Things
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import Alike, Likeness
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.regions import Regions
from samclip_core.types import EverythingMask, ImageFeatures, Prompt, TextPrompt

LEAST_AREA = 1e-4
"""Added to a share of the picture before its logarithm is taken."""
TURN = 32
"""Regions that are judged before others get a turn."""
_PLAIN = Likeness(
    clip=10.0, sam=10.0, quality=2.0, log_area=0.5, difference=-0.2, offset=0.0, min_score=0.5
)


@dataclass(frozen=True, eq=False)
class ExamplePrompt:
    """Every object like one of the examples, but none that is more like a negative one.

    With ``text``, only those that it describes; ``not_texts`` and ``where`` as in a TextPrompt.
    """

    examples: Sequence[Example]
    text: str = ""
    not_texts: tuple[str, ...] = ()
    where: Prompt | None = None

    @property
    def words(self) -> TextPrompt | None:
        """The text as a prompt of its own, if there is one."""
        return TextPrompt(self.text, self.not_texts, self.where) if self.text else None


@dataclass(frozen=True, eq=False)
class Known:
    """The vectors of an example; ``here``: it is in the picture that is searched."""

    vectors: Vectors
    negative: bool = False
    here: bool = False


@dataclass(frozen=True)
class FindAlike(Request[list[EverythingMask]]):
    """Which objects are like the examples? The best ``label_score`` first.

    Those below ``min_score`` are left out (None: the checkpoint's). With ``masks``, which answer a
    text, only these are judged, and the lower one of both scores counts. Questions about a picture
    that share ``of_regions``, its regions as masks by their index, hold each mask once.
    """

    known: Sequence[Known]
    min_score: float | None = None
    where: Prompt | None = None
    masks: Sequence[EverythingMask] | None = None
    of_regions: dict[int, EverythingMask] | None = None

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return ("REGIONS",) if self.masks is None else ("SAM", "CLIP_DENSE")

    def check(self, geometry: Geometry) -> None:
        check_examples(one.negative for one in self.known)
        check_min_score(self.min_score)
        if self.where is None:
            return
        if self.where.mask_input_hw is not None:
            raise InvalidPrompt(
                "examples and a mask_input exclude each other: leave out one of them, or give the "
                "examples points or a box"
            )
        self.where.validate(geometry)

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[list[EverythingMask]]:
        yield None  # the caller's turn: regions may have to be opened first
        if self.masks is None:
            regions, masks = features.regions, None
        else:
            regions, masks = regions_of(features, self.masks), self.masks
        if not len(regions):
            return []
        score_R, least_R = _scores(
            self._weights(config.fitted.alike, features, regions), regions, self.known
        )
        if self.min_score is not None:
            least_R[:] = self.min_score
        where = self.where and self.where.in_model_frame(features.geometry)
        opened = {} if self.of_regions is None else self.of_regions
        found, things = [], Things(len(score_R))
        for number, index in enumerate(np.argsort(-score_R, kind="stable")):
            if score_R[index] < least_R[index]:
                continue
            if number % TURN == TURN - 1:
                yield None
            if masks is None:
                mask, score = _of_region(features, int(index), opened), float(score_R[index])
            else:
                mask, score = masks[index], min(masks[index].label_score, float(score_R[index]))
            if fits(where, mask.logits_hw > 0, features.geometry):
                thing, known = mask.thing, things.count
                if masks is None and (thing := things.add(mask.inside_hw)) < known:
                    continue  # another size of a thing that is found already
                found.append(replace(mask, label_score=score, thing=thing))
        return sorted(found, key=lambda mask: -mask.label_score)

    def _weights(
        self, alike: Alike | None, features: ImageFeatures, regions: Regions
    ) -> list[Likeness]:
        """Return the weights for each example."""
        if alike:
            return [alike.within if one.here else alike.across for one in self.known]
        usual: tuple[FloatArray, FloatArray] = regions.clip_RD, regions.sam_RE
        if self.masks is not None:  # which are few, and chosen by a text
            usual = _cells(features, "CLIP_DENSE"), _cells(features, "SAM")
        return [plain_weights(regions, one.vectors, *usual) for one in self.known]


def _of_region(
    features: ImageFeatures, index: int, opened: dict[int, EverythingMask]
) -> EverythingMask:
    if index not in opened:
        mask = EverythingMask.of_region(features.geometry, features.regions, index)
        opened[index] = replace(mask, region=index)
    return opened[index]


def _cells(features: ImageFeatures, name: Literal["SAM", "CLIP_DENSE"]) -> NDArray[np.float32]:
    """Return the vectors of a map's cells that hold picture, N×D."""
    map_Dss = features.output(name)
    rows, columns = features.geometry.grid(map_Dss.shape[-1])
    return map_Dss[:, :rows, :columns].reshape(len(map_Dss), -1).T.astype(np.float32)


def _scores(
    own_K: Sequence[Likeness], regions: Regions, known: Sequence[Known]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each region's score, and the least that its most similar example asks for.

    The score is -1 where a negative example has higher log-odds than all others.
    """
    odds_KR = np.array(
        [log_odds(own, regions, one.vectors) for own, one in zip(own_K, known, strict=True)]
    )
    negative_K = np.array([one.negative for one in known])
    wanted_KR = np.where(negative_K[:, None], -np.inf, odds_KR)
    best_R = wanted_KR.argmax(axis=0)
    highest_R = wanted_KR.max(axis=0)
    score_R = 1 / (1 + np.exp(-np.clip(highest_R, -30, 30)))
    score_R[odds_KR.max(axis=0) > highest_R] = -1
    return score_R, np.array([own.min_score for own in own_K])[best_R]


def plain_weights(
    regions: Regions, vectors: Vectors, clip_ND: FloatArray, sam_NE: FloatArray
) -> Likeness:
    """Return weights for a checkpoint to which nobody has fitted any: mostly the cosines.

    Models differ in the cosines of unlike things, but in all of them an example has a cosine of 1
    with itself. So the log-odds are 0 halfway from the mean of ``clip_ND`` and ``sam_NE``, which
    are from anywhere in the picture, to the example, for a region of the example's size and of the
    best quality.
    """
    level = unit(clip_ND).mean(axis=0) @ vectors.clip_D * _PLAIN.clip
    level += unit(sam_NE).mean(axis=0) @ vectors.sam_E * _PLAIN.sam
    halfway = (level + _PLAIN.clip + _PLAIN.sam) / 2
    quality = float((regions.predicted_iou_R * regions.stability_R).max())
    size = np.log(vectors.area + LEAST_AREA)
    return replace(
        _PLAIN, offset=-float(halfway + _PLAIN.quality * quality + _PLAIN.log_area * size)
    )


def log_odds(weights: Likeness, regions: Regions, vectors: Vectors) -> NDArray[np.float32]:
    """Return the log-odds R that each region is an object like the example."""
    *weight_5, offset, _ = astuple(weights)
    return numbers(regions, vectors) @ np.array(weight_5, np.float32) + np.float32(offset)


def numbers(regions: Regions, vectors: Vectors) -> NDArray[np.float32]:
    """Return what is weighed, R×5, in the order of the fields of ``Likeness``."""
    log_area_R = np.log(regions.area_R + LEAST_AREA)
    columns = (
        unit(regions.clip_RD) @ vectors.clip_D,
        unit(regions.sam_RE) @ vectors.sam_E,
        regions.predicted_iou_R * regions.stability_R,
        log_area_R,
        np.abs(log_area_R - np.log(vectors.area + LEAST_AREA)),
    )
    return np.stack(columns, axis=1).astype(np.float32)
