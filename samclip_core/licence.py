"""What is known of a checkpoint's licence, and the order of licences of several parts."""

from collections.abc import Iterable, Mapping
from typing import Any

from samclip_core.families import KINDS

NOT_STATED = "not stated"
"""The licence of a file that nobody has described."""
_FREEST_FIRST = ("mit", "apache-2.0", "cc-by-4.0", "nvidia open model license")


def of(kind: str, lineage: Mapping[str, Any]) -> str:
    """Return what is known of a checkpoint's licence: that of its parts, or of bundled weights."""
    parts = lineage.get("published", ())
    if not parts and kind in KINDS and KINDS[kind].licence:
        return " ".join(KINDS[kind].licence.split())
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
