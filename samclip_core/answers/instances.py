"""Every object that texts describe, or nothing where there is none.

Each text's evidence map (``samclip_core.answers.presence``) says where to look. Cells where another
text of the request or an unwanted one has more evidence are left out. If the rest is too weak, the
text is refused without a run of the SAM head. Otherwise the maxima of the map, and the pieces above
half-way to its maximum, prompt the SAM head, whose masks separate objects that touch.

Shape letters: s×s cells of the SAM head's low-resolution logits, M masks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import BACKGROUND_WORDS, background_words
from samclip_core.answers.map_prompts import find_components, highest_points
from samclip_core.answers.presence import SHARE, Evidence, score
from samclip_core.answers.request import Output, Request
from samclip_core.answers.steps import Question, Steps, Terms, questions
from samclip_core.config import Presence, SamClipConfig
from samclip_core.errors import InvalidLabels, InvalidPrompt
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import (
    EverythingMask,
    ImageFeatures,
    MaskSet,
    Prompt,
    TextPrompt,
)

MAX_TEXTS = 256
"""Most different texts of a call, wanted or not: each has a map in memory."""
MAX_POINTS, MAX_PIECES = 4, 3
"""Most maxima and pieces of a text's map that prompt the SAM head."""
RISE = 0.6
"""Maxima and pieces have at least this fraction of the way from the map's median to its maximum."""
MAX_IOU, MAX_COVER = 0.5, 0.8
"""A mask is left out if a better one of its text has a higher IoU with it, or is covered by it to
more than this. Parts of a better mask stay: which of the two is meant, only the caller knows."""
MAX_MASKS, MIN_QUALITY = 5, 0.6
"""Most masks of a text; they have at least this share of the best one's quality."""
SLIVER = 0.05
"""A mask is left out if it has less than this share of the cells of the text's largest one."""
IN_BOX = 0.8
"""A mask is in a box if this much of it is."""


@dataclass(frozen=True, eq=False)
class _Search:
    """One prompt's evidence and the cells where it may be; ``where`` is in the model frame."""

    prompt: TextPrompt
    where: Prompt | None
    evidence: Evidence
    weights: Presence
    allowed_ss: NDArray[np.bool_]

    @property
    def map_ss(self) -> NDArray[np.float32]:
        return self.evidence.map_Xss[self.evidence.row[self.prompt.text]]

    def contrast(self, inside_ss: NDArray[np.bool_]) -> float:
        """Return the mean evidence in these cells above that in the picture's others, or 0."""
        others_ss = self.evidence.picture_ss & ~inside_ss
        if not others_ss.any():
            return 0.0
        return max(0.0, float(self.map_ss[inside_ss].mean() - self.map_ss[others_ss].mean()))

    def score(self, inside_ss: NDArray[np.bool_]) -> float:
        """Return the text's score for the object in these cells."""
        text = self.prompt.text
        highest = self.evidence.peak(text, inside_ss & self.allowed_ss)
        pooled = float(self.evidence.pooled_X[self.evidence.row[text]])
        return float(score(self.weights, highest, pooled))


_Ranked = tuple[float, EverythingMask]
"""A mask after its quality: predicted IoU × stability × contrast of the evidence."""


@dataclass(frozen=True)
class Find(Request[list[list[EverythingMask]]]):
    """Which objects do the texts describe? One list per prompt, the best score first.

    ``prompts`` are by the index that errors name. Objects whose ``label_score`` is below
    ``min_score`` are left out (None: the checkpoint's).
    """

    prompts: Mapping[int, TextPrompt]
    min_score: float | None = None

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return ("SAM", "CLIP_DENSE", "CLIP_POOLED")

    @property
    def texts(self) -> Sequence[str]:
        texts, background = asked_words([*self.prompts.values()])
        return [*texts, *background]

    def check(self, geometry: Geometry) -> None:
        """Raise InvalidPrompt or InvalidLabels unless all prompts fit the picture."""
        if not self.prompts:
            raise InvalidPrompt("no prompts: give at least one text")
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise InvalidPrompt(f"min_score is {self.min_score:g}, expected 0 to 1")
        texts, _ = asked_words([*self.prompts.values()])
        if len(texts) > MAX_TEXTS:
            raise InvalidPrompt(
                f"the prompts have {len(texts)} different texts, at most {MAX_TEXTS}: ask for them "
                "in several calls"
            )
        for index, prompt in self.prompts.items():
            try:
                prompt.validate(geometry)
            except (InvalidLabels, InvalidPrompt) as error:
                raise type(error)(f"prompt {index}: {error}") from error

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[list[list[EverythingMask]]]:
        """Find the objects of each prompt.

        ``label_score`` is the score of ``samclip_core.answers.presence``: the probability that the
        text describes the object if the checkpoint is calibrated. A pixel that masks of several
        texts cover belongs to the text with most evidence there.
        """
        weights = config.fitted.presence or SHARE
        least = weights.min_score if self.min_score is None else self.min_score
        prompts = [*self.prompts.values()]
        found = []
        searches = list(_searches(features, prompts, text_XD, config.logit_scale, weights))
        for search in searches:
            masks: list[_Ranked] = []
            if search.allowed_ss.any() and search.score(search.allowed_ss) >= least:
                for question in _questions(terms, features, search):
                    for answer in (yield question):
                        masks += _scored(features, search, answer, least)
                yield None
            found.append(_without_doubles(masks))
        return _settle(found, searches)


def asked_words(prompts: Sequence[TextPrompt]) -> tuple[list[str], list[str]]:
    """Return the texts of the prompts, wanted or not, and the background words to embed."""
    texts = list(dict.fromkeys(text for p in prompts for text in (p.text, *p.not_texts)))
    return texts, list(background_words(texts) or BACKGROUND_WORDS)


def _searches(
    features: ImageFeatures,
    prompts: Sequence[TextPrompt],
    text_XD: FloatArray,
    logit_scale: float,
    weights: Presence,
) -> Iterator[_Search]:
    texts, _ = asked_words(prompts)
    wanted, background_KD = dict(zip(texts, text_XD, strict=False)), text_XD[len(texts) :]
    evidence = Evidence.of(features, wanted, background_KD, logit_scale, weights is SHARE)
    side = evidence.map_Xss.shape[-1]
    best_ss = evidence.map_Xss[[evidence.row[p.text] for p in prompts]].max(axis=0)
    for prompt in prompts:
        own = evidence.row[prompt.text]
        rival_ss = best_ss
        for text in prompt.not_texts:
            rival_ss = np.maximum(rival_ss, evidence.map_Xss[evidence.row[text]])
        where = _in_model_frame(features, prompt.where)
        yield _Search(
            prompt,
            where,
            evidence,
            weights,
            evidence.picture_ss
            & (evidence.map_Xss[own] >= rival_ss)
            & _in_box(where, features.geometry, side),
        )


def _in_model_frame(features: ImageFeatures, where: Prompt | None) -> Prompt | None:
    """Return points and box in pixels of the model frame."""
    return None if where is None else where.in_model_frame(features.geometry)


def _in_box(where: Prompt | None, geometry: Geometry, side: int) -> NDArray[np.bool_]:
    """Return the cells whose centre is in the box; all if there is none.

    The centre of a cell that ends in the padding may lie there: then the picture's edge counts.
    """
    if where is None or where.box is None:
        return np.ones((side, side), np.bool_)
    x_min, y_min, x_max, y_max = where.box
    centre_s = (np.arange(side) + 0.5) * (geometry.size / side)
    x_s = np.minimum(centre_s, geometry.input_width)
    y_s1 = np.minimum(centre_s, geometry.input_height)[:, None]
    return (x_s >= x_min) & (x_s <= x_max) & (y_s1 >= y_min) & (y_s1 <= y_max)


def _questions(terms: Terms, features: ImageFeatures, search: _Search) -> Iterator[Question]:
    """Yield the prompts that the map gives, and the user's own points and box."""
    in_frame = replace(features, geometry=features.geometry.model_frame)
    rows, columns = features.geometry.grid(len(search.map_ss))
    low = float(np.median(search.map_ss[:rows, :columns]))
    high = float(search.map_ss[search.allowed_ss].max())
    level = low + RISE * (high - low)
    points = highest_points(features, search.map_ss, search.allowed_ss, level, MAX_POINTS)
    several = [Prompt(points=(point,)) for point in points]
    if search.where is not None:
        several.append(search.where)
    yield from questions(in_frame, several, multimask=True, at_once=terms.at_once)
    above_ss = search.allowed_ss & (search.map_ss >= level)
    probability_ss = 1 / (1 + np.exp(level - search.map_ss))
    pieces = find_components(features, probability_ss[None], above_ss[None])[:MAX_PIECES]
    single = [piece.prompt for piece in pieces]
    yield from questions(in_frame, single, multimask=False, at_once=terms.at_once)


def _scored(
    features: ImageFeatures, search: _Search, answer: MaskSet, least: float
) -> Iterator[_Ranked]:
    """Yield the masks of an answer that are where they should be and score enough."""
    for index, logits_ss in enumerate(answer.logits_Mhw):
        inside_ss = (logits_ss > 0) & search.evidence.picture_ss
        there = (inside_ss & search.allowed_ss).any()
        if there and _fits(search.where, inside_ss, features.geometry):
            score = search.score(inside_ss)
            if score >= least:
                iou, stability = (
                    float(value[index]) for value in (answer.predicted_iou_M, answer.stability_M)
                )
                text = search.prompt.text
                mask = EverythingMask(features.geometry, logits_ss, iou, stability, text, score)
                yield max(0.0, iou) * stability * search.contrast(inside_ss), mask


def _fits(where: Prompt | None, inside_ss: NDArray[np.bool_], geometry: Geometry) -> bool:
    """Return whether a mask contains the positive points only, and is in the box."""
    if where is None:
        return True
    side = len(inside_ss)
    in_box = inside_ss & _in_box(where, geometry, side)
    if in_box.sum() < IN_BOX * inside_ss.sum():
        return False
    rows, columns = geometry.grid(side)
    negative = where.negative or (False,) * len(where.points)
    for (x, y), unwanted in zip(where.points, negative, strict=True):
        row, column = (int(value * side / geometry.size) for value in (y, x))
        if inside_ss[min(row, rows - 1), min(column, columns - 1)] == unwanted:
            return False
    return True


def _without_doubles(masks: Sequence[_Ranked]) -> list[EverythingMask]:
    """Return the masks nearly as good as the best, no doubles and no slivers, best scores first.

    Of masks with equal scores, the better one is first; of equally good ones, that with the higher
    predicted IoU.
    """
    kept: list[EverythingMask] = []
    least = MIN_QUALITY * max((quality for quality, _ in masks), default=0.0)
    for quality, mask in sorted(masks, key=lambda each: (-each[0], -each[1].predicted_iou)):
        if quality >= least and not any(_redundant(mask, better) for better in kept):
            kept.append(mask)
    cells = [int(mask.inside_hw.sum()) for mask in kept]
    kept = [mask for mask, own in zip(kept, cells, strict=True) if own >= SLIVER * max(cells)]
    return sorted(kept[:MAX_MASKS], key=lambda mask: -mask.label_score)


def _redundant(mask: EverythingMask, better: EverythingMask) -> bool:
    inside_hw, other_hw = mask.inside_hw, better.inside_hw
    area, other, common = inside_hw.sum(), other_hw.sum(), (inside_hw & other_hw).sum()
    return bool(common > MAX_IOU * (area + other - common) or common > MAX_COVER * other)


def _settle(
    found: Sequence[Sequence[EverythingMask]], searches: Sequence[_Search]
) -> list[list[EverythingMask]]:
    """Give each cell that several texts' masks cover to the one with most evidence there.

    A mask that loses half of its cells is left out.
    """
    best_ss = np.full_like(searches[0].map_ss, -np.inf)
    for masks, search in zip(found, searches, strict=True):
        for mask in masks:
            np.maximum(best_ss, search.map_ss, out=best_ss, where=mask.logits_hw > 0)
    settled: list[list[EverythingMask]] = []
    for masks, search in zip(found, searches, strict=True):
        lost_ss = search.map_ss < best_ss
        cut = [_cut(mask, lost_ss) for mask in masks]
        settled.append([mask for mask in cut if mask is not None])
    return settled


def _cut(mask: EverythingMask, lost_ss: NDArray[np.bool_]) -> EverythingMask | None:
    lost = np.count_nonzero((mask.logits_hw > 0) & lost_ss)
    if not lost:
        return mask
    if 2 * lost >= np.count_nonzero(mask.inside_hw):
        return None
    logits_ss = np.where(lost_ss, -np.abs(mask.logits_hw), mask.logits_hw)
    return replace(mask, logits_hw=logits_ss.astype(np.float32))
