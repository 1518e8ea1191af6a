"""Where this checkout is, and how another Python process imports one."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def sources(root: Path = ROOT) -> str:
    """The PYTHONPATH of a checkout. Older ones keep the client in ``proto``."""
    return os.pathsep.join(str(root / folder) for folder in ("client", "proto", "."))
