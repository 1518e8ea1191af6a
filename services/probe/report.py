"""What is known of a fitted probe: figures with intervals, confusions, a sheet of mistakes, a card.

N pictures, C classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from samclip.cli import answers
from samclip.cli.formats import Row, table
from samclip.drawing import contact_sheet, with_title
from samclip.images import Source, read_pixels
from samclip.types import Model

from services.probe.encode import Part

MISTAKES = 48
"""Most pictures of the sheet: eight rows."""
_SIDE = 240
MATRIX = 10
"""Most classes whose whole confusion matrix is shown; of more, as many of the worst pairs are."""


@dataclass(frozen=True)
class Judged:
    """The probabilities of each class for labelled parts, N×C, and the threshold of an answer."""

    parts: Sequence[Part]
    classes: Sequence[str]
    probability_NC: NDArray[np.floating]
    threshold: float

    @cached_property
    def probability_N(self) -> NDArray[np.floating]:
        """The probability of the best class of each part."""
        return self.probability_NC.max(axis=1)

    @cached_property
    def best(self) -> list[str]:
        """The best class of each part, also below the threshold."""
        return [self.classes[index] for index in self.probability_NC.argmax(axis=1)]

    @property
    def figures(self) -> list[Row]:
        """Return the figures as rows, with 95 % intervals of Wilson."""
        known_N = np.isin([part.label for part in self.parts], self.classes)
        refused_N = self.probability_N < self.threshold
        right_N = np.array([part.label == best for part, best in self._pairs])
        zero_N = np.array([part.label == part.zero_shot for part in self.parts])
        rows = [
            _share("accuracy", right_N[known_N]),
            _share("zero-shot accuracy", zero_N[known_N]),
            _share("refused", refused_N[known_N]),
            _share("accuracy when answered", right_N[known_N & ~refused_N]),
            _share("refused of other classes", refused_N[~known_N]),
        ]
        mean = {"figure": "mean probability", "value": float(self.probability_N[known_N].mean())}
        return [row for row in rows if row["of"]] + [mean] * bool(known_N.any())

    @property
    def confusions(self) -> list[Row]:
        """Return how often a class was taken for another, the most frequent first."""
        wrong = Counter((part.label, best) for part, best in self._pairs if part.label != best)
        return [
            {"true": true, "predicted": predicted, "count": count}
            for (true, predicted), count in wrong.most_common()
        ]

    @property
    def _pairs(self) -> list[tuple[Part, str]]:
        return list(zip(self.parts, self.best, strict=True))

    def matrix(self) -> list[Row]:
        """Return the confusion matrix, a row for each true class."""
        count = Counter((part.label, best) for part, best in self._pairs)
        names = dict.fromkeys([*self.classes, *(part.label for part in self.parts)])
        return [
            {"true": true, **{name: count[true, name] for name in self.classes}} for true in names
        ]

    def sheet(self) -> Image.Image | None:
        """Return the mistakes as one picture, the most certain first; None without any."""
        wrong = [
            (probability, part, best)
            for (part, best), probability in zip(self._pairs, self.probability_N, strict=True)
            if part.label != best
        ]
        wrong.sort(key=lambda each: -each[0])
        tiles = [
            with_title(_picture(part), f"{part.label[:14]} as {best[:14]} {probability:.2f}")
            for probability, part, best in wrong[:MISTAKES]
        ]
        return contact_sheet(tiles, min(6, len(tiles)), _SIDE) if tiles else None


def interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson, which holds for few and for extreme ones."""
    z = 1.959964
    centre = (right + z * z / 2) / (total + z * z)
    half = z * sqrt(right * (total - right) / total + z * z / 4) / (total + z * z)
    return centre - half, centre + half


def _share(figure: str, of_N: NDArray[np.bool_]) -> Row:
    right, total = int(of_N.sum()), len(of_N)
    if not total:
        return {"figure": figure, "of": 0}
    low, high = interval(right, total)
    return {"figure": figure, "value": right / total, "low": low, "high": high, "of": total}


def _picture(part: Part) -> Image.Image:
    """Return a part as a square picture, black if its file has gone."""
    try:
        image = Image.fromarray(read_pixels(answers.read(Source(part.source))))
    except (OSError, ValueError):
        return Image.new("RGB", (_SIDE, _SIDE))
    return ImageOps.pad(image.crop(part.box) if part.box else image, (_SIDE, _SIDE))


def shown(judged: Judged) -> str:
    """Return the figures and the confusions as tables."""
    few = len(judged.classes) <= MATRIX
    pairs = judged.confusions[:MATRIX]
    confusions = table(judged.matrix() if few else pairs) if pairs else "no mistakes"
    return f"{table(judged.figures)}\n\n{confusions}"


def shown(judged: Judged) -> str:
    """Return the figures and the confusions as tables."""
    few = len(judged.classes) <= MATRIX
    pairs = judged.confusions[:MATRIX]
    confusions = table(judged.matrix() if few else pairs) if pairs else "no mistakes"
    return f"{table(judged.figures)}\n\n{confusions}"


_CARD = """# {name}

A linear classifier of {what} in {number} classes, fitted with `samclip probe fit` to embeddings
of the checkpoint `{model}`:

    {digest}

It works with that checkpoint alone. The licence of the checkpoint, which `samclip info` shows, and
the rights to the photographs that taught the classes limit its use.

    samclip serve --head {name}

An answer with a probability below {threshold:.3f} is "none of these": this is the highest
threshold that keeps 95 % of the right answers. Pictures of other classes may still pass: measure
that with `samclip probe eval`.

The figures are of {folds}-fold cross-validation, with 95 % intervals. Zero-shot is the answer of
the checkpoint with the names of the classes as labels. The strength of the fit, {strength:g}, was
chosen on the same folds.

{figures}
{counts}"""


def card(name: str, judged: Judged, model: Model, **more: Any) -> str:
    """Return the model card of a probe."""
    of_boxes = judged.parts[0].box is not None
    counts = Counter(part.label for part in judged.parts)
    return _CARD.format(
        name=name,
        what="boxes in pictures" if of_boxes else "pictures",
        number=len(judged.classes),
        model=model.name,
        digest=model.digest,
        threshold=judged.threshold,
        figures=_markdown(judged.figures),
        counts=_markdown([{"class": label, "count": counts[label]} for label in judged.classes]),
        **more,
    )


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[*rows[0]], ["---"] * len(rows[0])]
    cells += [[_cell(row.get(key, "")) for key in rows[0]] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _cell(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value).replace("|", "\\|")
