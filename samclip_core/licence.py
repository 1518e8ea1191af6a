"""What is known of the licence of the bundled weights, as docs/edge.md and the model card say it.

And the order of other licences, for weights that are made of several.
"""

from collections.abc import Iterable, Mapping
from typing import Any

EDGE = """As far as this project owns the weights of `edge`, they are released under Apache-2.0; so
are EfficientNet-Lite and all-MiniLM-L6-v2, from which they were made. The photographs that taught
them belong to others: most sets allow non-commercial research only, some state no terms, and such
terms limit training with the photographs and passing them on. Whether they also bind a model that
was trained on the photographs is not settled. A company can evaluate with `edge`; for a product, it
should serve a public model whose licence it has checked, or train on photographs that it has the
rights to."""

NOT_STATED = "not stated"
"""The licence of a file that nobody has described."""
_FREEST_FIRST = ("mit", "apache-2.0", "cc-by-4.0", "nvidia open model license")


def of(kind: str, lineage: Mapping[str, Any]) -> str:
    """Return what is known of a checkpoint's licence: those of its published parts, or ``EDGE``."""
    parts = lineage.get("published", ())
    if kind == "edge" and not parts:
        return " ".join(EDGE.split())
    stated = dict.fromkeys(one.get("licence", NOT_STATED) for one in parts)
    if parts and len(parts) < len(lineage.get("sources", ())):
        stated["of other files: not stated"] = None
    return "; ".join(stated) or NOT_STATED


def strictest(licences: Iterable[str]) -> str:
    """Return the licence with most conditions.

    Those of other names count as stricter than known ones; several of them are all returned.
    """
    given = dict.fromkeys(licences)
    others = [one for one in given if _conditions(one) == len(_FREEST_FIRST)]
    return " and ".join(others) or max(given, key=_conditions, default=NOT_STATED)


def _conditions(licence: str) -> int:
    known = [n for n, name in enumerate(_FREEST_FIRST) if licence.lower().startswith(name)]
    return known[0] if known else len(_FREEST_FIRST)
