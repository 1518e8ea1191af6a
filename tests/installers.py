"""A stand-in for uv, which installs nothing."""

import sys
from pathlib import Path

UV = """#!{python}
import sys, sysconfig
from pathlib import Path

with Path(__file__).with_name("asked").open("a") as asked:
    print(*sys.argv[1:], file=asked)
if sys.argv[1] == "venv":
    base = sys.argv[-1]
    Path(sysconfig.get_path("purelib", "venv", {{"base": base}})).mkdir(parents=True)
    python = Path(base, "bin/python")
    python.parent.mkdir()
    python.write_text({script!r})
    python.chmod(0o755)
else:
    sys.exit({status})
"""


def write_uv(folder: Path, script: str = f'exec {sys.executable} "$@"', status: int = 0) -> Path:
    """Write a uv whose Pythons are this shell script; return its path.

    A file "asked" beside it gets its arguments. ``status`` is that of an installation.
    """
    uv = folder / "uv"
    uv.write_text(UV.format(python=sys.executable, script=f"#!/bin/sh\n{script}\n", status=status))
    uv.chmod(0o755)
    return uv
