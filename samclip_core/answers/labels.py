"""Labels as data sets spell them, in the words that a text encoder knows."""

_SUFFIXES = ("-merged", "-other", "-stuff")
_MADE_OF = ("floor", "wall")


def readable(label: str) -> str:
    """Return the words of a label from a data set; any other text is unchanged.

    COCO's "tree-merged" is "tree", "wall-brick" is "brick wall", and underscores are spaces. Other
    hyphens are kept, as in "t-shirt".
    """
    words = " ".join(label.split("_")).strip()
    while words.endswith(_SUFFIXES):
        words = words.rpartition("-")[0]
    kind, _, which = words.partition("-")
    if which and kind in _MADE_OF:
        return f"{which} {kind}"
    return f"window {which}" if which and kind == "window" else words or label
