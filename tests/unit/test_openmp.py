import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from samclip_core import use_cores


@pytest.mark.parametrize(("asked", "cores"), [(0, len(os.sched_getaffinity(0))), (3, 3)])
def test_torch_takes_the_cores_that_it_is_given(asked: int, cores: int) -> None:
    before = torch.get_num_threads()
    try:
        use_cores(asked)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == cores
    finally:
        torch.set_num_threads(before)


BOUND = """
import os, threading
from samclip_core import use_cores
use_cores({asked})
import torch
def compute():
    torch.ones(4_000_000).exp()
    of_each = (os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task"))
    print(sorted(core for cores in of_each if len(cores) == 1 for core in cores))
thread = threading.Thread(target=compute)
thread.start()
thread.join()
print(sorted(os.sched_getaffinity(0)), sorted(name for name in os.environ if "OMP_P" in name))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: nowhere else to go")
@pytest.mark.parametrize("asked", [0, 2])
def test_where_all_cores_are_used_each_of_openmps_threads_stays_on_one(asked: int) -> None:
    """And nothing else does: not who asked, nor what it starts later, which finds no word of it."""
    done = subprocess.run(
        [sys.executable, "-c", BOUND.format(asked=asked)],
        capture_output=True,
        text=True,
        check=True,
    )
    all_cores = str(sorted(os.sched_getaffinity(0)))
    assert done.stdout.splitlines() == ["[]" if asked else all_cores, f"{all_cores} []"]
