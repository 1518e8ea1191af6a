import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from samclip_core.memory import keep_memory
if {kept}:
    keep_memory()
def compute():
    blocks = [np.ones(2**20) for _ in range(4)]  # of 8 MiB each, free again at the end
for _ in range(3):
    compute()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
compute()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("kept", [True, False])
def test_what_was_freed_is_there_for_what_comes_next(kept: bool) -> None:
    """By itself, glibc lets the system find empty pages for the same block each time."""
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS.format(kept=kept)],
        capture_output=True,
        text=True,
        check=True,
    )
    faults = int(ended.stdout)
    assert faults < 10 if kept else faults > 1000
