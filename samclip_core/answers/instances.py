"""Find every object that a text describes, or none if there is none.

The candidates for a text are the picture's regions. If the prompt has points or a box, the SAM
head's masks for these are candidates, too. Candidates are ranked by the log-odds that they show the
text's object. A candidate is left out if most of it belongs to an unwanted text. All are left out
if even the best one is too improbable. The other texts of a request change nothing of this: only an
exclusive request then gives each cell to the prompt with the best score there.

If the checkpoint has no fitted weights for regions, the candidates are the SAM head's masks at the
maxima of the text's map. Regions are not used then, because without fitted numbers the search for
them takes long.

Shape letters: s×s cells of the SAM head's low-resolution logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.evidence import BESIDE, SHARE, Compared, Evidence, Words, probability
from samclip_core.answers.find_regions import fits, in_box, regions_of
from samclip_core.answers.map_prompts import logits_side, prompts_of
from samclip_core.answers.request import Output, Request, check_min_score, for_masks, of_part
from samclip_core.answers.steps import Steps, Terms, questions
from samclip_core.answers.things import MAX_COVER, is_double, is_size, numbered
from samclip_core.calibration import Presence
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import (
    EverythingMask,
    ImageFeatures,
    Prompt,
    TextPrompt,
)

MAX_TEXTS = 256
"""Most different texts of a call, wanted or not: each has a map in memory."""
MAX_MASKS, MARGIN = 5, 0.6
"""The most masks of a text, and how much lower their log-odds may be than those of the best one:
their odds are at least 1 / 1.8 of the best one's. Without fitted weights, masks are ranked by
products of qualities, to which the same ratio applies."""
SLIVER = 0.05
"""A mask is left out if it has less than this share of the cells of the text's largest one."""


class _Candidate(NamedTuple):
    """A region, and its log-odds, or the log of its quality if nothing is fitted."""

    log_odds: float
    compared: Compared
    number: int

    @property
    def inside_ss(self) -> NDArray[np.bool_]:
        """The cells that it covers in the picture."""
        levels_ss = self.compared.regions.levels_Rss[self.number]
        return (levels_ss > 0) & self.compared.evidence.picture_ss


@dataclass(frozen=True, eq=False)
class _Search:
    """One prompt's evidence and the cells where it may be; ``where`` is in the model frame."""

    prompt: TextPrompt
    where: Prompt | None
    evidence: Evidence
    weights: Presence
    allowed_ss: NDArray[np.bool_]

    @property
    def geometry(self) -> Geometry:
        """The picture's."""
        return self.evidence.geometry

    @property
    def map_ss(self) -> NDArray[np.float32]:
        """The evidence for the text."""
        return self.evidence.map_ss(self.prompt.text)

    def candidates(self, several: Sequence[Compared], least: float) -> list[_Candidate]:
        """Return the regions that may have at least this score, the best first."""
        if self.weights.regions is None and self.score_in(self.allowed_ss) < least:
            return []
        found = []
        for compared in several:
            log_odds_R = self._log_odds(compared)
            may_R = (self.weights.regions is None) | (probability(log_odds_R) >= least)
            found += [
                _Candidate(float(log_odds_R[number]), compared, int(number))
                for number in np.flatnonzero(may_R)
            ]
        return sorted(found, key=lambda each: -each.log_odds)

    def score(self, candidate: _Candidate) -> float:
        """Return the text's score for a candidate."""
        if self.weights.regions is None:
            return self.score_in(candidate.inside_ss & self.allowed_ss)
        return float(probability(candidate.log_odds))

    def _log_odds(self, compared: Compared) -> NDArray[np.float32]:
        text, weights = self.prompt.text, self.weights
        if weights.regions is None:
            return compared.log_quality(text)
        of_text = self.evidence.log_odds(weights, text, self.allowed_ss)
        return of_text + compared.log_odds(weights.regions, text)

    def score_in(self, where_ss: NDArray[np.bool_]) -> float:
        """Return the text's score if its object is in these cells, without a region's numbers."""
        log_odds = self.evidence.log_odds(self.weights, self.prompt.text, where_ss)
        return float(probability(log_odds))


@dataclass(frozen=True)
class Find(Request[list[list[EverythingMask]]]):
    """Which objects do the texts describe? One list per prompt, the best score first.

    ``prompts`` are by the index that errors name. Objects whose ``label_score`` is below
    ``min_score`` are left out (None: the checkpoint's). Texts are judged each alone, so that their
    masks may overlap; if ``exclusive``, each cell belongs to the text with the best score there.
    """

    prompts: Mapping[int, TextPrompt]
    min_score: float | None = None
    exclusive: bool = False

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        """Return CLIP's outputs, and the regions or what the SAM head needs, or both."""
        if not self.prompts:
            return ()
        if not (config.fitted.presence and config.fitted.presence.regions):
            return (*for_masks(config), "CLIP_DENSE", "CLIP_POOLED")
        several: tuple[Output, ...] = ("CLIP_DENSE", "CLIP_POOLED", "REGIONS")
        asked = any(p.where for p in self.prompts.values())
        return (*several, *for_masks(config)) if asked else several

    @property
    def texts(self) -> Sequence[str]:
        prompts = self.prompts.values()
        return list(dict.fromkeys(text for p in prompts for text in (p.text, *p.not_texts)))

    @property
    def shared_texts(self) -> Sequence[str]:
        return BESIDE if self.prompts else ()

    def check(self, geometry: Geometry) -> None:
        if not self.prompts:
            raise InvalidPrompt("no prompts: give at least one text")
        self.check_texts()
        for index, prompt in self.prompts.items():
            with of_part(f"prompt {index}"):
                prompt.validate(geometry)

    def check_texts(self) -> None:
        """Raise InvalidPrompt for too many texts, or a wrong score, before they are embedded."""
        check_min_score(self.min_score)
        if len(self.texts) > MAX_TEXTS:
            raise InvalidPrompt(
                f"the prompts have {len(self.texts)} different texts, at most {MAX_TEXTS}: ask for "
                "them in several calls"
            )

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[list[list[EverythingMask]]]:
        """Find the objects of each prompt.

        ``label_score`` is the score of ``samclip_core.answers.evidence``: the probability that the
        text describes the object if the checkpoint is calibrated.
        """
        if not self.prompts:
            return []
        weights = config.fitted.presence or SHARE
        least = weights.min_score if self.min_score is None else self.min_score
        wheres = [
            prompt.where and prompt.where.in_model_frame(features.geometry)
            for prompt in self.prompts.values()
        ]
        regions = features.regions if weights.regions else None
        if features.sam_Dhw is None and not regions:
            return [[] for _ in wheres]
        side = regions.levels_Rss.shape[-1] if regions else logits_side(features)
        words = Words.of(self.texts, text_XD, config.logit_scale)
        evidence = Evidence.of(features, words, side, weights is SHARE)
        everywhere = [Compared.of(evidence, regions)] if regions else []
        found = []
        for prompt, where in zip(self.prompts.values(), wheres, strict=True):
            search = _search(prompt, where, evidence, weights)
            masks = yield from _asked(features, search, terms, least)
            own = [Compared.of(evidence, regions_of(features, masks))] if masks else []
            found.append(_chosen(search, [*everywhere, *own], least))
            yield None
        return [*_exclusive(found)] if self.exclusive else found


def _asked(
    features: ImageFeatures, search: _Search, terms: Terms, least: float
) -> Steps[list[EverythingMask]]:
    """Return the SAM head's masks for the user's points or box.

    If no weights for regions are fitted, also those at the maxima of the text's map.
    """
    several, single = list[Prompt](), list[Prompt]()
    by_map = search.weights.regions is None and bool(search.allowed_ss.any())
    if by_map and search.score_in(search.allowed_ss) >= least:
        several, single = prompts_of(features, search.map_ss, search.allowed_ss)
    if search.where:
        several.append(search.where)
    masks = []
    in_frame = replace(features, geometry=features.geometry.model_frame)
    for prompts, multimask in ((several, True), (single, False)):
        for question in questions(in_frame, prompts, multimask=multimask, at_once=terms.at_once):
            for answer in (yield question):
                columns = (answer.logits_Mhw, answer.predicted_iou_M, answer.stability_M)
                masks += [
                    EverythingMask(features.geometry, logits_ss, float(iou), float(stability))
                    for logits_ss, iou, stability in zip(*columns, strict=True)
                ]
    return [mask for mask in masks if mask.inside_hw.any()]


def _search(
    prompt: TextPrompt, where: Prompt | None, evidence: Evidence, weights: Presence
) -> _Search:
    allowed_ss = evidence.picture_ss & in_box(where, evidence.geometry, len(evidence.picture_ss))
    for text in prompt.not_texts:
        allowed_ss &= evidence.map_ss(prompt.text) >= evidence.map_ss(text)
    return _Search(prompt, where, evidence, weights, allowed_ss)


class _Size(NamedTuple):
    """A mask that may answer a text, and the cells that it covers in the picture."""

    candidate: _Candidate
    score: float
    inside_ss: NDArray[np.bool_]
    cells: int

    def common(self, other: "_Size") -> int:
        return int(np.count_nonzero(self.inside_ss & other.inside_ss))

    def is_of(self, best: "_Size") -> bool:
        return is_size(self.cells, best.cells, self.common(best))


def _chosen(search: _Search, several: Sequence[Compared], least: float) -> list[EverythingMask]:
    """Return a text's masks, the best scores first: no doubles, no slivers, not too many.

    With weights for regions, the best mask of a thing is its whole if that is nearly as good as its
    best part; it gets the score of that.
    """
    sizes = [*_sizes(search, several, least)]
    kept, best = list[_Size](), list[_Size]()
    for one in sizes:
        new = [one]
        if not any(map(one.is_of, best)):
            whole = _whole(one, sizes) if search.weights.regions else one
            best.append(whole._replace(score=one.score))
            new = [best[-1], one]
        for each in new:
            if not any(is_double(each.cells, k.cells, each.common(k)) for k in kept):
                kept.append(each)
        if len(kept) >= MAX_MASKS:
            break
    masks = []
    for candidate, score, _, cells in kept[:MAX_MASKS]:
        if cells >= SLIVER * max(each.cells for each in kept):
            regions, number = candidate.compared.regions, candidate.number
            mask = EverythingMask.of_region(search.geometry, regions, number)
            masks.append(replace(mask, label=search.prompt.text, label_score=score))
    return numbered(sorted(masks, key=lambda mask: -mask.label_score))


def _whole(part: _Size, sizes: Sequence[_Size]) -> _Size:
    """Return the largest mask that covers one, or that one; ``sizes`` begin with the best.

    A mask is no whole but several things if it has a better part beside this one.
    """
    whole = part
    for number, each in enumerate(sizes):
        if each.cells > whole.cells and part.common(each) > MAX_COVER * part.cells:
            inside = (other for other in sizes[:number] if other.cells < each.cells)
            if all(other.is_of(part) or not other.is_of(each) for other in inside):
                whole = each
    return whole


def _sizes(search: _Search, several: Sequence[Compared], least: float) -> Iterator[_Size]:
    """Yield the masks that fit and are nearly as good as the best one, the best first."""
    best = -np.inf
    for candidate in search.candidates(several, least):
        if candidate.log_odds < best - MARGIN:
            break
        inside_ss = candidate.inside_ss
        if _fits(search, inside_ss) and (score := search.score(candidate)) >= least:
            best = max(best, candidate.log_odds)
            yield _Size(candidate, score, inside_ss, int(np.count_nonzero(inside_ss)))


def _fits(search: _Search, inside_ss: NDArray[np.bool_]) -> bool:
    """Return whether a mask is mostly the text's, and where it should be."""
    if 2 * np.count_nonzero(inside_ss & search.allowed_ss) <= np.count_nonzero(inside_ss):
        return False
    return fits(search.where, inside_ss, search.geometry)


def _exclusive(found: Sequence[Sequence[EverythingMask]]) -> Iterator[list[EverythingMask]]:
    """Yield each prompt's masks, each cell only in those of the prompt with the best score there.

    Of equal scores, the first prompt's counts. A mask that loses half of its cells is left out.
    """
    shape = next((mask.logits_hw.shape for masks in found for mask in masks), (1, 1))
    best_ss, owner_ss = np.zeros(shape), np.full(shape, -1)
    for index, masks in enumerate(found):
        for mask in masks:
            wins_ss = (mask.logits_hw > 0) & (mask.label_score > best_ss)
            best_ss[wins_ss], owner_ss[wins_ss] = mask.label_score, index
    for index, masks in enumerate(found):
        cut = (_cut(mask, owner_ss != index) for mask in masks)
        yield numbered([mask for mask in cut if mask is not None])


def _cut(mask: EverythingMask, lost_ss: NDArray[np.bool_]) -> EverythingMask | None:
    inside_hw = mask.inside_hw
    height, width = inside_hw.shape
    lost = np.count_nonzero(inside_hw & lost_ss[:height, :width])
    if not lost:
        return mask
    if 2 * lost >= np.count_nonzero(inside_hw):
        return None
    logits_ss = np.where(lost_ss, -np.abs(mask.logits_hw), mask.logits_hw)
    return replace(mask, logits_hw=logits_ss.astype(np.float32))
