"""Texts of other people, as terminals and logs may have them."""

import re

_OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def plain(text: str, keep: str = "") -> str:
    """Return a text with JSON's escapes of control characters, ends of lines and bidi overrides."""
    return _OBEYED.sub(lambda c: c[0] if c[0] in keep else f"\\u{ord(c[0]):04x}", text)
