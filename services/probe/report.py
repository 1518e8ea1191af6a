"""What is known of a probe: figures with intervals, confusions, a picture of mistakes, a card.

N pictures or boxes, C classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from samclip.cli import answers
from samclip.cli.formats import Row, table
from samclip.drawing import contact_sheet, with_title
from samclip.images import read_pixels
from samclip.types import Model

from services.probe import fit
from services.probe.encode import Labelled

MISTAKES = 48
"""Most pictures of the sheet."""
MOST = 10
"""Classes of a matrix that is shown as a whole; of more, as many of the worst pairs are."""
_SIDE = 240


@dataclass(frozen=True)
class Judged:
    """The probabilities of each class for labelled parts, N×C, and the threshold of an answer.

    left_out: the best probabilities of parts by layers that do not know their classes.
    """

    parts: Sequence[Labelled]
    classes: Sequence[str]
    probability_NC: NDArray[np.floating]
    threshold: float
    left_out: Sequence[float] = ()

    @cached_property
    def answers(self) -> list[tuple[Labelled, str, float]]:
        """Each part with its best class, also below the threshold, and its probability."""
        best_N = self.probability_NC.argmax(axis=1)
        names = [self.classes[best] for best in best_N]
        return list(zip(self.parts, names, self.probability_NC.max(axis=1).tolist(), strict=True))

    @property
    def figures(self) -> list[Row]:
        """Return the figures as rows, shares with Wilson's interval of 95 %."""
        classes = {*self.classes}
        known = [each for each in self.answers if each[0].label in classes]
        others = [each for each in self.answers if each[0].label not in classes]
        given = [each for each in known if each[2] >= self.threshold]
        shares = {
            "accuracy": [part.label == best for part, best, _ in known],
            "zero-shot accuracy": [part.label == part.zero_shot for part, _, _ in known],
            "refused": [probability < self.threshold for _, _, probability in known],
            "accuracy when answered": [part.label == best for part, best, _ in given],
            "refused of other classes": [each[2] < self.threshold for each in others],
            "refused of classes left out": [best < self.threshold for best in self.left_out],
        }
        rows = [_share(name, is_so) for name, is_so in shares.items() if is_so]
        if known:
            mean = float(np.mean([probability for _, _, probability in known]))
            rows.append({"figure": "mean probability", "value": mean})
        return rows

    @property
    def mistakes(self) -> list[tuple[Labelled, str, float]]:
        """Return the answers with another class, the most certain first."""
        wrong = [each for each in self.answers if each[0].label != each[1]]
        return sorted(wrong, key=lambda each: -each[2])

    @property
    def confusions(self) -> list[Row]:
        """Return how often a class was taken for another, the most frequent first."""
        count = Counter((part.label, best) for part, best, _ in self.mistakes)
        names = ("true", "predicted", "count")
        return [dict(zip(names, (*pair, n), strict=True)) for pair, n in count.most_common()]

    def shown(self) -> str:
        """Return the figures, and the matrix or the worst confusions, as tables."""
        count = Counter((part.label, best) for part, best, _ in self.answers)
        rows = self.confusions[:MOST]
        if len(self.classes) <= MOST:
            trues = dict.fromkeys([*self.classes, *(part.label for part in self.parts)])
            rows = [
                {"true": true} | {f"as {name}": count[true, name] for name in self.classes}
                for true in trues
            ]
        least = f"threshold {self.threshold:.3f}: a lower probability is none of these"
        return f"{table(self.figures)}\n{least}\n\n{table(rows) if rows else 'no mistakes'}"

    def sheet(self) -> Image.Image | None:
        """Return the mistakes as one picture; None without any."""
        tiles = [
            with_title(_picture(part), f"{part.label[:14]} as {best[:14]} {probability:.2f}")
            for part, best, probability in self.mistakes[:MISTAKES]
        ]
        return contact_sheet(tiles, min(6, len(tiles)), _SIDE) if tiles else None


def _share(figure: str, is_so: Sequence[bool]) -> Row:
    low, high = interval(sum(is_so), len(is_so))
    value = sum(is_so) / len(is_so)
    return {"figure": figure, "value": value, "low": low, "high": high, "of": len(is_so)}


def interval(part: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, which also holds for few and for extreme ones."""
    z = 1.959964
    centre = part + z * z / 2
    half = z * sqrt(part * (total - part) / total + z * z / 4)
    return (centre - half) / (total + z * z), (centre + half) / (total + z * z)


def _picture(part: Labelled) -> Image.Image:
    """Return a part as a square picture, black without its file."""
    try:
        image = Image.fromarray(read_pixels(answers.read(part.source)))
    except (OSError, ValueError):
        return Image.new("RGB", (_SIDE, _SIDE))
    return ImageOps.pad(image.crop(part.box) if part.box else image, (_SIDE, _SIDE))


def card(name: str, judged: Judged, model: Model, strength: float) -> str:
    """Return the model card of a probe."""
    counts = Counter(part.label for part in judged.parts)
    return f"""# {name}

A linear classifier in {len(judged.classes)} classes, fitted with `samclip probe fit` to embeddings
of the checkpoint `{model.name}`:

    {model.digest}

It works with that checkpoint alone. The licence of the checkpoint, which `samclip info` shows, and
the rights to the photographs that taught the classes limit its use.

An answer with a probability below {judged.threshold:.3f} is "none of these". The threshold was
chosen on the pictures of cross-validation, as the highest that keeps {fit.KEPT:.0%} of the right
answers. Pictures of other classes may still pass it. "Refused of classes left out" is how many do
not, where layers fitted without some of the classes judge the pictures of these; with two classes
it cannot be measured. `samclip probe eval` measures pictures of your own.

The figures are of {fit.FOLDS}-fold cross-validation, with 95 % intervals. Zero-shot is the answer
of the checkpoint with the names of the classes as labels. The inverse regularisation,
{strength:g}, was chosen on the same folds.

```
{judged.shown()}

{table([{"class": label, "count": counts[label]} for label in judged.classes])}
```
"""
