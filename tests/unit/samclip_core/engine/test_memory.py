import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import threading
import numpy as np
from samclip_core.engine.processor import keep_memory
if {kept}:
    keep_memory()
def compute():
    for size in (3, 20, 9, 28, 14, 6, 25):  # MiB, free again at the end
        blocks = [np.ones(size * 2**17) for _ in range(3)]
def again_and_again():
    global faults
    for _ in range(3):
        compute()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    compute()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if {threaded}:
    thread = threading.Thread(target=again_and_again)
    thread.start()
    thread.join()
else:
    again_and_again()
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("kept", [True, False])
def test_what_was_freed_is_there_for_what_comes_next(kept: bool, threaded: bool) -> None:
    """By default, glibc returns large blocks, and each new one causes page faults again."""
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS.format(kept=kept, threaded=threaded)],
        capture_output=True,
        text=True,
        check=True,
    )
    faults = int(ended.stdout)
    assert faults < 10 if kept else faults > 1000
