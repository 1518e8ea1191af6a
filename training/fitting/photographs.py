"""What a checkpoint is calibrated with: each photograph is encoded and searched once."""

from collections.abc import Sequence
from dataclasses import dataclass

from samclip_core.model import SamClip
from training.data.annotations import regions
from training.data.sample import Sample
from training.evaluation.outlines import NamedThings
from training.evaluation.parallel import progress
from training.fitting import examples, presence, searches
from training.fitting.examples import RegionsAndThings
from training.fitting.presence import NameEvidence


@dataclass(frozen=True, eq=False)
class Photographs:
    """Some photographs of one set: all that is fitted to them, and measured in them.

    ``named`` are of those with outlined things, ``alike`` of those with regions as well. ``found``
    counts the outlined regions that the search finds, in those that have any (``outlined``).
    """

    evidence: list[NameEvidence]
    named: list[NamedThings]
    alike: list[RegionsAndThings]
    found: list[int]
    outlined: list[Sample]

    @classmethod
    def read(cls, model: SamClip, samples: Sequence[Sample], names: Sequence[str]) -> "Photographs":
        """Search each photograph for regions, if any has outlines, and ask for all names in it."""
        made, asked = cls([], [], [], [], []), presence.words_of(model, names)
        searched = any(map(presence.outlined, samples))
        for sample in progress(samples, "photographs"):
            features = model.encode(sample.encoded)
            if searched:
                features = model.regions(features)
            image_D = model.embed_image(sample.encoded)
            made.evidence.append(presence.evidence_of(features, sample, asked, image_D))
            named = NamedThings.of(model, features, sample, names, image_D)
            if len(named.name_M):
                made.named.append(named)
            if searched and len(features.regions) and examples.has_outlines(sample):
                made.alike.append(examples.photo_of(model, features, sample))
            if searched and regions(sample):
                made.found.append(searches.regions_found(features, sample))
                made.outlined.append(sample)
        return made

    def __add__(self, other: "Photographs") -> "Photographs":
        return Photographs(
            self.evidence + other.evidence,
            self.named + other.named,
            self.alike + other.alike,
            self.found + other.found,
            self.outlined + other.outlined,
        )
