"""What a checkpoint costs on this machine, measured once by ``samclip pull`` and kept."""

import platform
import re
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from samclip_core.engine.base import CACHE_DIR
from samclip_core.engine.choice import noise
from samclip_core.engine.disk import DiskCache
from samclip_core.io import checkpoint

RUNS = 3


def measure(directory: Path) -> str:
    """Return the cost of a new image, or why it is not known; a process of its own measures it."""
    # -P: a file in the current directory may have the name of a module.
    command = [sys.executable, "-P", "-m", __name__, str(directory.absolute())]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        reason = run.stderr.strip().rpartition("\n")[2] or f"exit code {run.returncode}"
        return f"not measured: {reason}"
    _cache(directory).write("measured", run.stdout.strip().encode())
    return run.stdout.strip()


def known(directory: Path) -> str:
    """Return the cost that ``measure`` found here; empty if it has not measured this checkpoint."""
    return (_cache(directory).read("measured") or b"").decode()


def _cache(directory: Path) -> DiskCache:
    key = checkpoint.identity(directory), platform.node(), platform.machine()
    return DiskCache(CACHE_DIR.expanduser(), "measured", *key)


def main(directory: str) -> None:
    """Load a checkpoint, encode an image at each of its sides, and print the cost."""
    from samclip_core.model import SamClip

    model, costs = SamClip.load(directory), []
    for side in model.config.sizes:
        seconds = []
        for _ in range(RUNS):
            begin = perf_counter()
            model.engine.encode(*noise(side))
            seconds.append(perf_counter() - begin)
        costs.append(f"{1000 * min(seconds):,.0f} ms per new image at {side} pixels")
    print(f"measured here: {', '.join(costs)}; {peak_megabytes():,} MB of memory")


def peak_megabytes() -> int:
    """Return the most memory that this process had."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20  # macOS counts bytes
    # Not ru_maxrss: on Linux that includes the process that started this one.
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) // 1024


if __name__ == "__main__":
    main(sys.argv[1])
