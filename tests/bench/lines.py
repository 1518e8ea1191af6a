"""One line of the results: a figure, measured in several rounds, and what may be said of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

TOLERANCE = 0.03  # what a machine differs from itself between two runs, whatever the rounds say


@dataclass(frozen=True)
class Line:
    """``rounds`` has one figure a round, itself the median of what the round saw."""

    name: str
    unit: str  # "ms", "/s", "%", "×", "GB", "s"
    rounds: Sequence[float]
    more_is_better: bool = False
    p99: float | None = None  # of all that was seen in all rounds
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))

    @property
    def spread(self) -> tuple[float, float]:
        """The middle four fifths of the rounds."""
        low, high = np.percentile(self.rounds, [10, 90])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"median": self.median, "spread": self.spread}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        names = cls.__dataclass_fields__
        return cls(**{name: value for name, value in values.items() if name in names})


def seen(name: str, samples: Sequence[Sequence[float]], unit: str = "ms") -> Line:
    """A line of what was seen: all samples of each round."""
    together = np.concatenate([np.asarray(one, float) for one in samples])
    medians = [float(np.median(one)) for one in samples]
    return Line(name, unit, medians, p99=float(np.percentile(together, 99)))


def ratio(name: str, above: Line, below: Line, more_is_better: bool = False) -> Line:
    """Round by round, so that a machine that gets slower does not count: both do."""
    return _paired(name, "×", above, below, lambda a, b: a / b, more_is_better)


def difference(name: str, above: Line, below: Line) -> Line:
    return _paired(name, above.unit, above, below, lambda a, b: a - b, False)


def _paired(
    name: str,
    unit: str,
    above: Line,
    below: Line,
    of: Callable[[float, float], float],
    more_is_better: bool,
) -> Line:
    rounds = [of(a, b) for a, b in zip(above.rounds, below.rounds, strict=True)]
    return Line(name, unit, rounds, more_is_better)


def is_worse(new: Line, old: Line) -> bool:
    """Tell whether the figure is worse than before beyond the spread of both runs."""
    sign = -1.0 if new.more_is_better else 1.0
    new_best = min(sign * value for value in new.spread)
    old_worst = max(sign * value for value in old.spread)
    margin = TOLERANCE * abs(old.median)
    return new_best > old_worst and sign * (new.median - old.median) > margin


def table(lines: Sequence[Line]) -> str:
    """Plain text, for a terminal."""
    rows = [f"{'':50}{'median':>10}{'p10':>10}{'p90':>10}{'p99':>10}"]
    for line in lines:
        numbers = [line.median, *line.spread]
        cells = "".join(f"{number:10.4g}" for number in numbers)
        p99 = f"{line.p99:10.4g}" if line.p99 is not None else " " * 10
        rows.append(f"{line.name:50}{cells}{p99}  {line.unit}")
    return "\n".join(rows)
