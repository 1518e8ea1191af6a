"""The root of this checkout, and the PYTHONPATH with which other processes import a checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def sources(root: Path = ROOT) -> str:
    """Return the PYTHONPATH of a checkout."""
    return f"{root / 'client'}{os.pathsep}{root}"
